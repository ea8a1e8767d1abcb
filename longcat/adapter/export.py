"""Export of adapters to the formats of other programs."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor

from longcat.adapter.foreign.module_names import HALVES_SWAPPED, comfyui_name
from longcat.adapter.weights.file import as_file, save_lora, vector_end, write_tensors
from longcat.adapter.weights.lora import LoraLayer, LoraWeights
from longcat.errors import AdapterError
from longcat.model.shape import MLP_RATIO

_NO_HEADER: Mapping[str, str] = MappingProxyType({})


def write_comfyui(weights: LoraWeights, path: Path, header: Mapping[str, str] = _NO_HEADER) -> None:
    """Write a file for ComfyUI: diffusers' keys, which its Flux models know, and ``.alpha`` tensors beside them.

    ComfyUI would skip these names with the prefix ``diffusion_model.``, with a warning. The header stays, so that diffusers
    reads the same file with the same scale; only the time's embedding has another name in ComfyUI, that of diffusers' other
    Flux models. Raises ``AdapterError`` for DoRA, for which ComfyUI has no keys.
    """
    _reject_columns(weights)
    if weights.uses_dora:
        raise AdapterError(
            "adapter_dora_in_comfyui",
            "the adapter uses DoRA as PEFT computes it, for which ComfyUI has no keys",
            remedy="export it in the format diffusers",
        )
    tensors, configuration = as_file(replace(weights, vectors={}))
    alphas = {f"transformer.{module}.alpha": torch.tensor(weights.alpha) for module in weights.layers}
    named = {_comfyui_name(key): tensor for key, tensor in (alphas | tensors).items()}  # LoKr and LoHa have their own
    if weights.kind != "lora":
        configuration = {"format": "pt"}  # no configuration describes several scales
    write_tensors(named | _comfyui_vectors(weights), path, configuration | dict(header))


def write_diffusers(weights: LoraWeights, path: Path, header: Mapping[str, str] = _NO_HEADER) -> None:
    """Write a file for diffusers and SimpleTuner. Raises ``AdapterError`` for changes of vectors, which they do not read."""
    _reject_columns(weights)
    if weights.vectors:
        raise AdapterError(
            "adapter_vectors_in_diffusers",
            "the adapter changes biases or norms, such as that of {module}, for which diffusers has no keys",
            remedy="export it in the format comfyui",
            module=next(iter(weights.vectors)),
        )
    if weights.kind != "lora":
        raise AdapterError(
            "adapter_kind_in_diffusers",
            "the adapter is of the kind {kind}, which diffusers does not read",
            remedy="export it in the format comfyui or lycoris",
            kind=weights.kind,
        )
    save_lora(weights, path, header)


def write_lycoris(weights: LoraWeights, path: Path, header: Mapping[str, str] = _NO_HEADER) -> None:
    """Write a file for ``lycoris-lora`` and SimpleTuner: names with underscores. Raises ``AdapterError`` for LoRA."""
    others = [module for module, layer in weights.layers.items() if isinstance(layer, LoraLayer)]
    if others or weights.vectors:
        raise AdapterError(
            "adapter_kind_in_lycoris",
            "the adapter changes {module} by another kind than LoKr and LoHa",
            remedy="export it in the format diffusers or comfyui",
            module=[*others, *weights.vectors][0],
        )
    tensors = {
        f"lycoris_{module.replace('.', '_')}.{end}": tensor.contiguous()
        for module, layer in weights.layers.items()
        for end, tensor in layer.tensors().items()
    }
    write_tensors(tensors, path, {"format": "pt"} | dict(header))


def _reject_columns(weights: LoraWeights) -> None:
    if weights.column_magnitudes:
        raise AdapterError(
            "adapter_columns_exported",
            "the adapter uses DoRA over the input axis, such as on {module}, which no format here keeps",
            remedy="use the file that it was imported from",
            module=next(iter(weights.column_magnitudes))[0],
        )


def _comfyui_vectors(weights: LoraWeights) -> dict[str, Tensor]:
    """Return vectors under ComfyUI's own names, where those of a fused layer are one: its loader finds them by no other."""
    found: dict[str, Tensor] = {}
    for module in weights.vectors:
        name, parts = comfyui_name(module)
        key = f"diffusion_model.{name}.{vector_end(module)}"
        if key not in found:
            width = weights.vectors[module].shape[0] // _widths(module)
            vector = torch.cat([weights.vectors.get(part, torch.zeros(width * _widths(part))) for part in parts])
            found[key] = vector.roll(len(vector) // 2) if name in HALVES_SWAPPED else vector
    return found


def _widths(module: str) -> int:
    """Return the width of a fused layer's part, in those of the attention's."""
    return MLP_RATIO if module.endswith("proj_mlp") else 1


def _comfyui_name(key: str) -> str:
    return key.replace("transformer.time_embed.", "transformer.time_text_embed.", 1)


class FormatWriter(Protocol):
    """Writes a file in one format. ``header``: further entries of the file's header."""

    def __call__(self, weights: LoraWeights, path: Path, header: Mapping[str, str] = _NO_HEADER) -> None:
        """Raise ``AdapterError`` if the format has no form for the weights."""


WRITERS: Mapping[str, FormatWriter] = MappingProxyType(
    {"diffusers": write_diffusers, "comfyui": write_comfyui, "lycoris": write_lycoris}
)
"""Writers by the name of the format. SimpleTuner reads diffusers' format, and that of LyCORIS for LoKr and LoHa."""
