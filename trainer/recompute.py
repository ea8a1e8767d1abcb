"""Activations that are computed again in the backward pass instead of being kept: gradient checkpointing."""

import torch
from diffusers import LongCatImageTransformer2DModel


def checkpoint_blocks(transformer: LongCatImageTransformer2DModel, *, every: int) -> None:
    """Let every n-th block of each kind compute its activations again in the backward pass."""
    transformer.enable_gradient_checkpointing()
    if every == 1:
        return
    whole = transformer._gradient_checkpointing_func

    def sometimes(block: torch.nn.Module, *inputs: object) -> object:
        return whole(block, *inputs) if places[block] % every == 0 else block(*inputs)

    blocks = (*transformer.transformer_blocks, *transformer.single_transformer_blocks)
    places = {block: place for place, block in enumerate(blocks)}
    transformer._gradient_checkpointing_func = sometimes
