"""Optimizers and learning-rate schedules, all from libraries."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers.optimization import get_polynomial_decay_schedule_with_warmup, get_scheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from trainer.loop.adamw8bit import make_adamw8bit


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """The options of optimizer and schedule, under their names in ``TrainConfig``."""

    optimizer: str
    learning_rate: float
    adam_beta1: float
    adam_beta2: float
    adam_weight_decay: float
    adam_epsilon: float
    lr_scheduler: str
    lr_warmup_steps: int
    lr_num_cycles: int
    lr_power: float
    lr_end: float


_OPTIONS = ("betas", "weight_decay", "eps", "warmup_steps")
"""The options of an optimizer's groups, beside the learning rate."""


def make_optimizer(parameters: Sequence[nn.Parameter], settings: OptimizerSettings) -> Optimizer:
    """Return the configured optimizer over these parameters."""
    shared: dict[str, Any] = {
        "lr": settings.learning_rate,
        "betas": (settings.adam_beta1, settings.adam_beta2),
        "weight_decay": settings.adam_weight_decay,
        "eps": settings.adam_epsilon,
    }
    if settings.optimizer == "adamw8bit":
        return make_adamw8bit(parameters, **shared)
    if settings.optimizer == "adamw-schedulefree":
        from schedulefree import AdamWScheduleFree

        schedule_free: Optimizer = AdamWScheduleFree(parameters, **shared, warmup_steps=settings.lr_warmup_steps)
        set_mode(schedule_free, training=True)
        return schedule_free
    if settings.optimizer == "prodigy":
        from prodigyopt import Prodigy

        prodigy: Optimizer = Prodigy(
            parameters, **shared, use_bias_correction=True, safeguard_warmup=True, decouple=True
        )
        return prodigy
    return torch.optim.AdamW(parameters, **shared, fused=True)


def make_schedule(optimizer: Optimizer, settings: OptimizerSettings, *, steps: int) -> LRScheduler:
    """Return the learning rate over ``steps`` optimizer steps. A schedule-free optimizer does its own warm-up."""
    if settings.optimizer == "adamw-schedulefree":
        constant: LRScheduler = get_scheduler("constant", optimizer)
        return constant
    if settings.lr_scheduler == "polynomial":
        polynomial: LRScheduler = get_polynomial_decay_schedule_with_warmup(
            optimizer, settings.lr_warmup_steps, steps, lr_end=settings.lr_end, power=settings.lr_power
        )
        return polynomial
    schedule: LRScheduler = get_scheduler(
        settings.lr_scheduler,
        optimizer,
        num_warmup_steps=settings.lr_warmup_steps,
        num_training_steps=steps,
        num_cycles=settings.lr_num_cycles,
    )
    return schedule


def restore(optimizer: Optimizer, schedule: LRScheduler, state: Mapping[str, Any]) -> None:
    """Load the state of a checkpoint, under the options with which optimizer and schedule were made.

    torch's own ``load_state_dict`` brings back the options of the checkpoint as well.
    """
    options = [{name: group[name] for name in _OPTIONS if name in group} for group in optimizer.param_groups]
    optimizer.load_state_dict(state["optimizer"])
    assert isinstance(schedule, LambdaLR)
    made = state["schedule"]["last_epoch"]
    rates = [base * factor(made) for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
    schedule.load_state_dict({**state["schedule"], "base_lrs": schedule.base_lrs, "_last_lr": rates})
    for group, given, base, rate in zip(optimizer.param_groups, options, schedule.base_lrs, rates, strict=True):
        group.update(given, initial_lr=base)
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def set_mode(optimizer: Optimizer, *, training: bool) -> None:
    """Switch a schedule-free optimizer's parameters between those that it steps with and those that are its result."""
    if hasattr(optimizer, "train") and hasattr(optimizer, "eval"):
        (optimizer.train if training else optimizer.eval)()


def clip_gradients(parameters: Sequence[nn.Parameter], limit: float, method: Literal["norm", "value"]) -> Tensor:
    """Limit the gradients' common norm or their values; return the norm that they had."""
    if method == "norm":
        return torch.nn.utils.clip_grad_norm_(parameters, limit, foreach=True)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
    torch.nn.utils.clip_grad_value_(parameters, limit, foreach=True)
    return norm
