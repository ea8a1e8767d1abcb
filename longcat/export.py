"""Adapters as files for other programs."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors.torch import save_file

from longcat.errors import AdapterError
from longcat.lora import LoraWeights, as_file, save_lora


def write_comfyui(weights: LoraWeights, path: Path) -> None:
    """Write what ComfyUI reads: diffusers' keys, which its Flux models know, and ``.alpha`` tensors beside them.

    ``diffusion_model.`` before these names would be skipped there with a warning. The header stays, so that diffusers reads
    the same file with the same scale, and alpha survives float32. Raises ``AdapterError`` for DoRA, for which it has
    no keys.
    """
    if weights.uses_dora:
        raise AdapterError("uses DoRA as PEFT has it, for which ComfyUI has no keys: export it for diffusers")
    tensors, header = as_file(weights)
    alphas = {f"transformer.{module}.alpha": torch.tensor(weights.alpha) for module in weights.layers}
    save_file(tensors | alphas, path, metadata=header)


WRITERS: Mapping[str, Callable[[LoraWeights, Path], None]] = MappingProxyType(
    {"diffusers": save_lora, "comfyui": write_comfyui}
)
"""By the name of the format; SimpleTuner reads diffusers'."""
