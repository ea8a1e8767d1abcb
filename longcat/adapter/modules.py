"""The modules of a transformer that an adapter may change.

- The blocks' own linear layers: attention, feed-forward and projections (``lora_targets``).
- Layers beside them: modulations (``norm*.linear``) and the time's embedding, which depend on the time alone; the prompt's
  embedder, which depends on the prompt alone; the embedder of image tokens and the output layer.
- The norms of heads, whose weights are vectors.

ComfyUI's extraction and trainer, and OneTrainer's "all", change all of them.
"""

import torch
from torch import nn

Modules = dict[str, tuple[int, ...]]
"""Modules by name: a linear layer's widths (in, out), or a norm's width alone."""

PROMPT_EMBEDDER = "context_embedder"
IMAGE_EMBEDDER = "x_embedder"
OUTPUT = "proj_out"
_TIME_EMBEDDER = "time_embed."


def adaptable_modules(transformer: nn.Module) -> Modules:
    """Return every module that an adapter may change."""
    return {**linear_modules(transformer), **norm_modules(transformer)}


def linear_modules(transformer: nn.Module) -> dict[str, tuple[int, int]]:
    """Return all linear layers with their (in, out) widths."""
    return {
        name: (module.in_features, module.out_features)
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear)
    }


def lora_targets(transformer: nn.Module) -> dict[str, tuple[int, int]]:
    """Return the blocks' own linear layers, which most adapters change, with their (in, out) widths."""
    return {name: widths for name, widths in linear_modules(transformer).items() if is_blocks_own(name)}


def norm_modules(transformer: nn.Module) -> dict[str, tuple[int]]:
    """Return the norms of heads with their width. Other norms of this transformer have no weights."""
    return {
        name: (module.weight.shape[0],)
        for name, module in transformer.named_modules()
        if isinstance(module, torch.nn.RMSNorm)
    }


def is_blocks_own(name: str) -> bool:
    """Return True for a linear layer of a block other than its modulations."""
    return "transformer_blocks." in name and ".norm" not in name


def is_norm(name: str) -> bool:
    """Return True for a norm of heads."""
    return name.rpartition(".")[2] in ("norm_q", "norm_k", "norm_added_q", "norm_added_k")


def is_conditioning(name: str) -> bool:
    """Return True for a linear layer whose input is the time or the prompt alone."""
    return name == PROMPT_EMBEDDER or depends_on_time(name)


def depends_on_time(name: str) -> bool:
    """Return True for a linear layer whose input is the time alone: it is computed once for a time."""
    return name.startswith(_TIME_EMBEDDER) or name.endswith(".linear")
