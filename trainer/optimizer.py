"""Optimizers and learning-rate schedules, all from libraries."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.optimization import get_polynomial_decay_schedule_with_warmup, get_scheduler
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from trainer.config import TrainConfig


def make_optimizer(parameters: Sequence[nn.Parameter], config: TrainConfig) -> Optimizer:
    """The configured optimizer over these parameters."""
    shared: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": (config.adam_beta1, config.adam_beta2),
        "weight_decay": config.adam_weight_decay,
        "eps": config.adam_epsilon,
    }
    if config.optimizer == "adamw8bit":
        from torchao.optim import AdamW8bit

        return AdamW8bit(parameters, **shared)  # type: ignore[no-any-return]
    if config.optimizer == "adamw-schedulefree":
        from schedulefree import AdamWScheduleFree

        optimizer: Optimizer = AdamWScheduleFree(parameters, **shared, warmup_steps=config.lr_warmup_steps)
        optimizer.train()  # type: ignore[attr-defined]
        return optimizer
    if config.optimizer == "prodigy":
        from prodigyopt import Prodigy

        return Prodigy(  # type: ignore[no-any-return]
            parameters, **shared, use_bias_correction=True, safeguard_warmup=True, decouple=True
        )
    return torch.optim.AdamW(parameters, **shared, fused=True)


def make_schedule(optimizer: Optimizer, config: TrainConfig, *, steps: int) -> LRScheduler:
    """The learning rate over ``steps`` optimizer steps. A schedule-free optimizer keeps its own warm-up, and no schedule."""
    if config.optimizer == "adamw-schedulefree":
        constant: LRScheduler = get_scheduler("constant", optimizer)
        return constant
    if config.lr_scheduler == "polynomial":
        falling: LRScheduler = get_polynomial_decay_schedule_with_warmup(
            optimizer, config.lr_warmup_steps, steps, lr_end=config.lr_end, power=config.lr_power
        )
        return falling
    schedule: LRScheduler = get_scheduler(
        config.lr_scheduler,
        optimizer,
        num_warmup_steps=config.lr_warmup_steps,
        num_training_steps=steps,
        num_cycles=config.lr_num_cycles,
    )
    return schedule


def settle(optimizer: Optimizer, *, training: bool) -> None:
    """Swap a schedule-free optimizer's parameters between those it steps with and those that are the result."""
    if hasattr(optimizer, "train") and hasattr(optimizer, "eval"):
        (optimizer.train if training else optimizer.eval)()
