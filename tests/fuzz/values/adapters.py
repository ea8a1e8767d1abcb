"""Adapters that the fuzz tests start from."""

import torch
from safetensors.torch import save

from longcat.adapter.weights.file import as_file
from longcat.adapter.weights.lora import LoraLayer, LoraWeights

MODULE = "transformer_blocks.0.attn.to_q"


def small(rank: int = 2, alpha: float = 4.0) -> LoraWeights:
    """Return an adapter of one layer."""
    layer = LoraLayer(torch.ones(rank, 256), torch.ones(256, rank))
    return LoraWeights(alpha=alpha, layers={MODULE: layer})


def file_of(weights: LoraWeights, **metadata: str) -> bytes:
    tensors, header = as_file(weights)
    return save(tensors, metadata={**header, **metadata})
