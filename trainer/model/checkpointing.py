"""Gradient checkpointing: activations that the backward pass computes again instead of keeping them."""

import torch
from diffusers import LongCatImageTransformer2DModel


def checkpoint_blocks(transformer: LongCatImageTransformer2DModel, *, every: int) -> None:
    """Recompute the activations of every ``every``-th block in the backward pass.

    diffusers can only checkpoint all blocks. Its private hook ``_gradient_checkpointing_func``, which each block calls, is
    replaced for a share of them; ``tests/test_seams.py`` holds it.
    """
    transformer.enable_gradient_checkpointing()
    if every == 1:
        return
    checkpoint = transformer._gradient_checkpointing_func

    def checkpoint_some(block: torch.nn.Module, *inputs: object) -> object:
        return checkpoint(block, *inputs) if places[block] % every == 0 else block(*inputs)

    blocks = (*transformer.transformer_blocks, *transformer.single_transformer_blocks)
    places = {block: place for place, block in enumerate(blocks)}
    transformer._gradient_checkpointing_func = checkpoint_some
