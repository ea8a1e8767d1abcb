"""Random LoRA adapters for the model that is checked."""

import torch
from torch import nn

from longcat.adapter.modules import lora_targets
from longcat.adapter.weights.lora import LoraLayer, LoraWeights

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
ALL_LAYERS = ("",)


def random_adapter(transformer: nn.Module, *, seed: int, rank: int, endings: tuple[str, ...]) -> LoraWeights:
    """Return an adapter of the layers with these endings that visibly changes a picture."""
    generator = torch.Generator().manual_seed(seed)
    layers = {
        name: LoraLayer(
            torch.randn(rank, width_in, generator=generator) / width_in**0.5,
            torch.randn(width_out, rank, generator=generator) * 0.05,
        )
        for name, (width_in, width_out) in lora_targets(transformer).items()
        if name.endswith(endings)
    }
    return LoraWeights(alpha=rank, layers=layers)
