"""The file of an adapter's weights.

A file holds ``transformer.<module>.lora_A.weight`` (rank, in), ``transformer.<module>.lora_B.weight`` (out, rank) and,
with DoRA, ``transformer.<module>.lora_magnitude_vector`` (out,), as diffusers names them. With DoRA over the input axis,
it holds ``transformer.<module>.dora_scale`` (1, in); names of modules that are fused there are joined by "+". The header
holds the configuration under diffusers' key ``lora_adapter_metadata``: without it, alpha would be lost and the scale
silently 1. Layers of LoKr and LoHa (``longcat.adapter.weights.lycoris``) have the tensors of ``lycoris-lora`` under the same
prefix, each with its alpha. Files are safetensors; nothing is unpickled.

Errors are about the adapter itself and name no input; callers add theirs (``LithographError.within``).
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from longcat.adapter.manifest import ALPHA_RANGE, is_alpha
from longcat.adapter.modules import is_norm
from longcat.adapter.weights.lora import MAGNITUDE, Layer, LoraLayer, LoraWeights
from longcat.adapter.weights.lycoris import LYCORIS_KEYS, lycoris_layer, scaled_by
from longcat.errors import AdapterError
from longcat.problem import show

METADATA = "lora_adapter_metadata"
"""Key of an adapter's configuration in a file's header, as diffusers names it."""
_PREFIX = "transformer."
COLUMNS = "dora_scale"
"""End of the key of magnitudes of columns, as LyCORIS and OneTrainer name it."""
_SEPARATOR = "+"


def save_lora(weights: LoraWeights, path: Path, header: Mapping[str, str] = MappingProxyType({})) -> None:
    """Write a file that diffusers' ``load_lora_adapter`` reads with the right scale. Equal weights give equal bytes.

    ``header``: further entries of the header (``longcat.adapter.weights.usage``).
    """
    tensors, metadata = as_file(weights)
    write_tensors(tensors, path, metadata | dict(header))


def write_tensors(tensors: dict[str, Tensor], path: Path, header: Mapping[str, str]) -> None:
    """Write a safetensors file. Equal tensors and headers give equal bytes."""
    path.write_bytes(_with_sorted_header(save(tensors, metadata=dict(header))))


def _with_sorted_header(content: bytes) -> bytes:
    """Sort the metadata in a file's header, which safetensors writes in an order that differs from run to run."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def as_file(weights: LoraWeights) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return what ``save_lora`` writes: tensors by key, and the header."""
    tensors = {}
    for module, layer in weights.layers.items():
        for end, tensor in layer.tensors().items():
            tensors[f"{_PREFIX}{module}.{end}"] = tensor.contiguous()
    for module, vector in weights.vectors.items():
        tensors[f"{_PREFIX}{module}.{vector_end(module)}"] = vector.contiguous()
    for modules, magnitude in weights.column_magnitudes.items():
        tensors[f"{_PREFIX}{_SEPARATOR.join(modules)}.{COLUMNS}"] = magnitude.contiguous()[None]
    config = {"r": weights.rank, "lora_alpha": weights.alpha, "target_modules": sorted(weights.layers)}
    if weights.uses_dora:
        config["use_dora"] = True
    metadata = {"format": "pt", METADATA: json.dumps({f"{_PREFIX}{key}": value for key, value in config.items()})}
    return tensors, metadata


def read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file: tensors by key, and its header. Raises ``AdapterError`` if it is no such file."""
    try:
        with safe_open(path, framework="pt") as stream:
            metadata = stream.metadata() or {}
            return {key: stream.get_tensor(key) for key in stream.keys()}, metadata  # noqa: SIM118 - not a dictionary
    except (SafetensorError, OSError, KeyError) as error:  # KeyError: a dtype that torch does not have
        raise _not_safetensors(path, error) from error


def _not_safetensors(path: Path, error: Exception) -> AdapterError:
    return AdapterError(
        "adapter_not_safetensors",
        "{file} is not a safetensors file: {reason}",
        remedy="give a safetensors file",
        file=str(path),
        reason=str(error),
    )


def load_lora(path: Path) -> LoraWeights:
    """Read a file that ``save_lora`` wrote. Raises ``AdapterError`` for any other."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _not_safetensors(path, error) from error
    return parse_lora(content, path)


def parse_lora(content: bytes, path: Path) -> LoraWeights:
    """Parse the bytes of a file that ``save_lora`` wrote; ``path`` is for errors. Raises ``AdapterError`` for any other.

    The tensors are copies. Those of ``read_file`` are mapped: they change, or end the process, with the file.
    """
    try:
        tensors = load(content)
    except (SafetensorError, KeyError) as error:  # KeyError: a dtype that torch does not have
        raise _not_safetensors(path, error) from error
    size = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + size]).get("__metadata__") or {}
    if METADATA not in metadata:
        raise AdapterError(
            "adapter_header_missing",
            "{file} has no {key} in its header, so that its alpha is not known",
            remedy="import it",
            file=str(path),
            key=METADATA,
        )
    try:
        config = json.loads(metadata[METADATA])
    except (ValueError, RecursionError) as error:
        raise AdapterError(
            "adapter_header_not_json",
            "{key} in the header of {file} is not JSON: {reason}",
            remedy="save the adapter again",
            file=str(path),
            key=METADATA,
            reason=str(error),
        ) from error
    alpha = config.get(f"{_PREFIX}lora_alpha") if isinstance(config, dict) else None
    if not is_alpha(alpha):
        raise AdapterError(
            "adapter_header_alpha",
            "the header of {file} gives alpha {alpha}, which is not a positive number from {least:g} to {most:g}",
            remedy="save the adapter again",
            file=str(path),
            alpha=show(alpha),
            least=ALPHA_RANGE[0],
            most=ALPHA_RANGE[1],
        )
    vectors, columns = _vectors(tensors), _column_magnitudes(tensors)
    return LoraWeights(alpha=float(alpha), layers=_layers(path, tensors), vectors=vectors, column_magnitudes=columns)


def vector_end(module: str) -> str:
    """Return the end of the key of a module's vector, as ComfyUI names it: diff of a norm, diff_b of a bias."""
    return "diff" if is_norm(module) else "diff_b"


def _vectors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take the vectors out of a file's tensors."""
    vectors = {}
    for name in [*tensors]:
        module, _, end = name.removeprefix(_PREFIX).rpartition(".")
        if name.startswith(_PREFIX) and end == vector_end(module):
            vectors[module] = tensors.pop(name)
    return vectors


def _column_magnitudes(tensors: dict[str, Tensor]) -> dict[tuple[str, ...], Tensor]:
    """Take the magnitudes of columns out of a file's tensors."""
    names = [name for name in tensors if name.startswith(_PREFIX) and name.endswith(f".{COLUMNS}")]
    return {
        tuple(name.removeprefix(_PREFIX).removesuffix(f".{COLUMNS}").split(_SEPARATOR)): tensors.pop(name).flatten()
        for name in names
    }


def _lycoris_layers(tensors: dict[str, Tensor]) -> dict[str, Layer]:
    """Take the LoKr and LoHa layers out of a file's tensors. Raises ``AdapterError`` for parts of one."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name in [*tensors]:
        module, _, end = name.removeprefix(_PREFIX).rpartition(".")
        if name.startswith(_PREFIX) and end in (*LYCORIS_KEYS, "alpha"):
            parts.setdefault(module, {})[end] = tensors.pop(name)
    return {
        module: scaled_by(lycoris_layer(module, found), alpha_in(module, found.get("alpha", torch.tensor(math.nan))))
        for module, found in parts.items()
    }


def alpha_in(module: str, tensor: Tensor) -> float:
    """Return the alpha of a tensor, of shape () or (1,). Raises ``AdapterError``."""
    is_number = tensor.numel() == 1 and tensor.dtype != torch.bool and not tensor.is_complex()
    alpha = float(tensor) if is_number else math.nan
    if not is_alpha(alpha):
        raise AdapterError(
            "adapter_alpha_invalid",
            "gives alpha {alpha} for {module!r}, which is not a positive number in range",
            remedy="save the adapter again",
            alpha=str(tensor.flatten().tolist()[:3]),
            module=module,
        )
    return alpha


def _layers(path: Path, tensors: dict[str, Tensor]) -> dict[str, Layer]:
    """Pair the tensors of a file by module. Raises ``AdapterError`` for a tensor that is no part of a pair."""
    layers = _lycoris_layers(tensors)
    magnitudes = {name: tensors.pop(name) for name in [*tensors] if name.endswith(f".{MAGNITUDE}")}
    for name in tensors:
        module, _, kind = name.removeprefix(_PREFIX).rpartition(".lora_")
        if not name.startswith(_PREFIX) or kind not in ("A.weight", "B.weight"):
            raise AdapterError(
                "adapter_key_unknown",
                "{file} holds {key!r}, which is neither transformer.*.lora_A.weight nor .lora_B.weight",
                remedy="import it",
                file=str(path),
                key=name,
            )
        if tensors[name].ndim != 2:
            raise AdapterError(
                "adapter_tensor_not_matrix",
                "{file} holds {key!r} with shape {shape}, which is not a matrix",
                remedy="save the adapter again",
                file=str(path),
                key=name,
                shape=str(tuple(tensors[name].shape)),
            )
        other = f"{_PREFIX}{module}.lora_{'B' if kind[0] == 'A' else 'A'}.weight"
        if other not in tensors:
            raise AdapterError(
                "adapter_tensor_alone",
                "{file} holds {key!r} without {other!r}",
                remedy="save the adapter again",
                file=str(path),
                key=name,
                other=other,
            )
        if kind == "A.weight":
            magnitude = magnitudes.pop(f"{_PREFIX}{module}.{MAGNITUDE}", None)
            layers[module] = LoraLayer(tensors[name], tensors[other], magnitude)
    if not layers:
        raise AdapterError(
            "adapter_file_empty", "{file} holds no LoRA weights", remedy="save the adapter again", file=str(path)
        )
    if magnitudes:
        raise AdapterError(
            "adapter_magnitude_alone",
            "{file} holds {key!r} without the layer that it belongs to",
            remedy="save the adapter again",
            file=str(path),
            key=next(iter(magnitudes)),
        )
    return layers
