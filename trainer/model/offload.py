"""Group offloading of a base with an adapter: blocks or layers are on the device while they compute.

The adapter stays on the device, where its gradients are computed and the optimizer steps.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from diffusers import LongCatImageTransformer2DModel
from torch import nn

from longcat.model.offload import Offloader, move_own
from trainer.model.lora import adapter_parts


@dataclass(frozen=True, kw_only=True)
class PlacementSettings:
    """The options of where weights are, under their names in ``TrainConfig``."""

    fsdp_enable: bool
    enable_group_offload: bool
    group_offload_type: str
    group_offload_blocks_per_group: int


def place(transformer: LongCatImageTransformer2DModel, settings: PlacementSettings, device: torch.device) -> None:
    """Move the transformer to the device or set up group offloading. A base that will be sharded is moved part by part."""
    if settings.fsdp_enable:
        for part in adapter_parts(transformer):
            part.to(device)
        return
    if not settings.enable_group_offload:
        transformer.to(device)
        return
    offloader, placed = Offloader(device), set[nn.Module]()
    for part in adapter_parts(transformer):
        part.to(device)
        placed.update(part.modules())
    for group in _groups(transformer, settings):
        base = [module for module in group if module not in placed]
        offloader.add(base)
        placed.update(base)
    for module in transformer.modules():
        if module not in placed:
            move_own(module, device)


def _groups(transformer: LongCatImageTransformer2DModel, settings: PlacementSettings) -> Iterator[Sequence[nn.Module]]:
    """Yield the modules that are on the device together. The layers before and after the blocks always are."""
    blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    if settings.group_offload_type == "leaf_level":
        # Norms stay on the device: their few weights are read without a call (``trainer.model.forward``).
        yield from ([module] for block in blocks for module in block.modules() if isinstance(module, nn.Linear))
        return
    per_group = settings.group_offload_blocks_per_group
    for first in range(0, len(blocks), per_group):
        yield [module for block in blocks[first : first + per_group] for module in block.modules()]
