"""LoRA weights in memory and in a file, and what makes them fit a transformer.

A file holds ``transformer.<module>.lora_A.weight`` (rank, in), ``transformer.<module>.lora_B.weight`` (out, rank) and, with
DoRA, ``transformer.<module>.lora_magnitude_vector`` (out,), as diffusers names them, and in its header what diffusers reads
there (``lora_adapter_metadata``): without it, alpha would be lost and the scale silently 1. Safetensors only; nothing is
unpickled.
"""

import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from longcat.adapter import BaseIdentity, Draft, Manifest, publish
from longcat.errors import AdapterError
from longcat.flavour import Flavour
from longcat.peft_config import METADATA
from longcat.storage import Storage

_PREFIX = "transformer."
_MAGNITUDE = "lora_magnitude_vector"


@dataclass(frozen=True)
class LoraLayer:
    """One module's update: ``up @ down`` times alpha / rank."""

    down: Tensor
    """A, (rank, in)."""
    up: Tensor
    """B, (out, rank)."""
    magnitude: Tensor | None = None
    """Of DoRA, (out,): what the rows of the adapted weight are as long as (``longcat.dora``)."""

    @property
    def rank(self) -> int:
        """Rows of A."""
        return self.down.shape[0]


@dataclass(frozen=True, kw_only=True)
class LoraWeights:
    """An adapter's weights: alpha, and a layer for each module that it changes."""

    alpha: float
    layers: Mapping[str, LoraLayer]

    @property
    def rank(self) -> int:
        """The rank that all layers have."""
        return next(iter(self.layers.values())).rank

    @property
    def uses_dora(self) -> bool:
        """Whether its layers have magnitudes."""
        return any(layer.magnitude is not None for layer in self.layers.values())


def save_lora(weights: LoraWeights, path: Path) -> None:
    """Write a file that diffusers' ``load_lora_adapter`` reads with the right scale; the same weights, the same bytes."""
    tensors, metadata = as_file(weights)
    path.write_bytes(_in_order(save(tensors, metadata=metadata)))


def _in_order(content: bytes) -> bytes:
    """The file with its header's metadata sorted: safetensors writes it in an order that differs from run to run."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def as_file(weights: LoraWeights) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What ``save_lora`` writes: tensors by key, and the header."""
    tensors = {}
    for module, layer in weights.layers.items():
        tensors[f"{_PREFIX}{module}.lora_A.weight"] = layer.down.contiguous()
        tensors[f"{_PREFIX}{module}.lora_B.weight"] = layer.up.contiguous()
        if layer.magnitude is not None:
            tensors[f"{_PREFIX}{module}.{_MAGNITUDE}"] = layer.magnitude.contiguous()
    config = {"r": weights.rank, "lora_alpha": weights.alpha, "target_modules": sorted(weights.layers)}
    if weights.uses_dora:
        config["use_dora"] = True
    metadata = {"format": "pt", METADATA: json.dumps({f"{_PREFIX}{key}": value for key, value in config.items()})}
    return tensors, metadata


def draft_of(weights: LoraWeights, base: Flavour, *, origin: str, **said: Any) -> Draft:
    """What a manifest says of these weights on this base. ``said``: further fields of ``Draft``."""
    return Draft(
        base=BaseIdentity(flavour=base.name, revision=base.revision, hash=base.hash),
        rank=weights.rank,
        alpha=weights.alpha,
        target_modules=tuple(sorted(weights.layers)),
        tensors=sum(2 if layer.magnitude is None else 3 for layer in weights.layers.values()),
        use_dora=weights.uses_dora,
        origin=origin,
        **said,
    )


def publish_lora(storage: Storage, name: str, draft: Draft, weights: LoraWeights) -> Manifest:
    """Store weights as a new version (``longcat.adapter.publish``)."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "adapter.safetensors")
        save_lora(weights, file)
        return publish(storage, name, draft, file)


def read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A safetensors file: tensors by key, and its header. Raises ``AdapterError`` if it is none."""
    try:
        with safe_open(path, framework="pt") as stream:
            metadata = stream.metadata() or {}
            return {key: stream.get_tensor(key) for key in stream.keys()}, metadata  # noqa: SIM118 - not a dictionary
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{path} is not a safetensors file: {error}") from error


def load_lora(path: Path) -> LoraWeights:
    """Read what ``save_lora`` wrote. Raises ``AdapterError`` for anything else."""
    tensors, metadata = read_file(path)
    if METADATA not in metadata:
        raise AdapterError(f"{path} does not say its alpha ({METADATA}); import it, so that its scale is known")
    try:
        config = json.loads(metadata[METADATA])
    except ValueError as error:
        raise AdapterError(f"{path} has a header that is not JSON ({METADATA}): {error}") from error
    alpha = config.get(f"{_PREFIX}lora_alpha") if isinstance(config, dict) else None
    if not isinstance(alpha, int | float) or not 0 < alpha < math.inf:
        raise AdapterError(f"{path} says alpha {alpha!r}, which is no positive number")
    layers: dict[str, LoraLayer] = {}
    magnitudes = {name: tensors.pop(name) for name in [*tensors] if name.endswith(f".{_MAGNITUDE}")}
    for name in tensors:
        module, _, kind = name.removeprefix(_PREFIX).rpartition(".lora_")
        if not name.startswith(_PREFIX) or kind not in ("A.weight", "B.weight"):
            raise AdapterError(
                f"{path} holds {name!r}, which is neither transformer.*.lora_A.weight nor .lora_B.weight"
            )
        if tensors[name].ndim != 2:
            raise AdapterError(
                f"{path} holds {name!r} with shape {tuple(tensors[name].shape)}; LoRA weights are matrices"
            )
        other = f"{_PREFIX}{module}.lora_{'B' if kind[0] == 'A' else 'A'}.weight"
        if other not in tensors:
            raise AdapterError(f"{path} holds {name!r} without {other!r}")
        if kind == "A.weight":
            magnitude = magnitudes.pop(f"{_PREFIX}{module}.{_MAGNITUDE}", None)
            layers[module] = LoraLayer(tensors[name], tensors[other], magnitude)
    if not layers:
        raise AdapterError(f"{path} holds no LoRA weights")
    if magnitudes:
        raise AdapterError(f"{path} holds {next(iter(magnitudes))!r} without the layer that it belongs to")
    return LoraWeights(alpha=float(alpha), layers=layers)


def lora_targets(transformer: nn.Module) -> dict[str, tuple[int, int]]:
    """Modules that an adapter may change, with their (in, out) widths: every linear layer inside a block.

    Modulations (``norm*.linear``) are left out: they see the time alone, and tables of them are computed ahead.
    """
    return {
        name: (module.in_features, module.out_features)
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear) and ".norm" not in name and "transformer_blocks." in name
    }


def check_lora(weights: LoraWeights, targets: Mapping[str, tuple[int, int]], *, max_rank: int) -> None:
    """Hold an adapter against a transformer before a byte of it is used. Raises ``AdapterError`` with what does not fit."""
    unknown = sorted(set(weights.layers) - set(targets))
    if unknown:
        raise AdapterError(f"changes {len(unknown)} modules that this model has not or keeps fixed, as {unknown[0]!r}")
    ranks = {layer.rank for layer in weights.layers.values()}
    if len(ranks) > 1:
        raise AdapterError(f"has layers of ranks {sorted(ranks)} under one alpha, so that their scale is not known")
    for module, layer in weights.layers.items():
        check_layer(module, layer, targets[module], max_rank=max_rank)


def check_layer(module: str, layer: LoraLayer, widths: tuple[int, int], *, max_rank: int) -> None:
    """Hold one layer against the (in, out) widths of its module. Raises ``AdapterError`` with what does not fit."""
    width_in, width_out = widths
    if layer.rank > max_rank:
        raise AdapterError(f"has rank {layer.rank}; at most {max_rank} is served here: serve with a larger rank")
    if layer.rank == 0:
        raise AdapterError(f"{module} has rank 0, which changes nothing: leave it out")
    for kind, tensor, shape in (
        ("lora_A", layer.down, (layer.rank, width_in)),
        ("lora_B", layer.up, (width_out, layer.rank)),
        (_MAGNITUDE, layer.magnitude, (width_out,)),
    ):
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise AdapterError(f"{module} {kind} has shape {tuple(tensor.shape)}; this model needs {shape}")
        if not tensor.is_floating_point():
            raise AdapterError(f"{module} {kind} holds {tensor.dtype}; it has to be a floating-point tensor")
        if not torch.isfinite(tensor.float()).all():  # as float32: what float64 alone can hold is not finite in a slot
            raise AdapterError(f"{module} {kind} holds numbers that are not finite")
