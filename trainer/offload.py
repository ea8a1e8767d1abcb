"""The base in main memory, its blocks on the device while they compute: diffusers' group offloading, with an adapter in it.

The adapter stays on the device: its gradients arrive there, and the optimizer steps there.
"""

from typing import Any

import torch
from diffusers import LongCatImageTransformer2DModel
from diffusers.hooks import apply_group_offloading
from torch import nn

from trainer.config import TrainConfig
from trainer.lora import lora_layers


def place(transformer: LongCatImageTransformer2DModel, config: TrainConfig, device: torch.device) -> None:
    """Move the transformer to the device, or arrange for its groups to visit it; what is to be split moves part by part."""
    if config.fsdp_enable:
        for _, layer in lora_layers(transformer):
            for part in (layer.lora_A, layer.lora_B, layer.lora_magnitude_vector):
                part.to(device)
        return
    if not config.enable_group_offload:
        transformer.to(device)
        return
    for _, layer in lora_layers(transformer):
        for part in (layer.lora_A, layer.lora_B, layer.lora_magnitude_vector):
            stay(part.to(device))
    per_group = config.group_offload_blocks_per_group if config.group_offload_type == "block_level" else None
    apply_group_offloading(
        transformer,
        onload_device=device,
        offload_device=torch.device("cpu"),
        offload_type=config.group_offload_type,
        num_blocks_per_group=per_group,
    )


def stay(module: nn.Module) -> None:
    """Let the module and all within stay where they are when they, or what contains them, are moved."""
    for part in module.modules():
        _pin(part)


def _pin(module: nn.Module) -> None:
    def unmoved(*_: Any, **__: Any) -> nn.Module:
        return module

    module._apply = unmoved  # type: ignore[method-assign]
