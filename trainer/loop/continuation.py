"""Resuming from a checkpoint: the options that may change, that keep their old value, and that are rejected. No torch."""

from collections.abc import Callable, Mapping
from typing import Any

from longcat.errors import ConfigError
from longcat.problem import Problem, show
from trainer.config.options import TrainConfig

_FIXED = (
    "optimizer",
    "lora_rank",
    "lora_alpha",
    "lora_targets",
    "lora_type",
    "lycoris_config",
    "use_dora",
    "use_rslora",
)
"""Options that shape the adapter or the optimizer's state: another value cannot go on from the checkpoint's."""
_KEPT = ("init_lora", "lora_init_type")
"""Options of the first step alone: a run that goes on has its weights from the checkpoint."""
_OF_THE_START = ("resume_from_checkpoint", "output_dir")
_PARTS: tuple[tuple[tuple[str, ...], str, Callable[[TrainConfig], bool]], ...] = (
    (("ema_decay",), "use_ema", lambda config: config.use_ema),
    (
        ("lr_scheduler", "lr_num_cycles", "lr_power", "lr_end"),
        "optimizer",
        lambda config: config.optimizer != "adamw-schedulefree",
    ),
    (("lr_num_cycles",), "lr_scheduler", lambda config: config.lr_scheduler == "cosine_with_restarts"),
    (("lr_power", "lr_end"), "lr_scheduler", lambda config: config.lr_scheduler == "polynomial"),
    (
        ("lr_warmup_steps",),
        "lr_scheduler",
        lambda config: config.lr_scheduler != "constant" or config.optimizer == "adamw-schedulefree",
    ),
    (("num_train_epochs",), "max_train_steps", lambda config: config.max_train_steps == 0),
    (("grad_clip_method",), "max_grad_norm", lambda config: config.max_grad_norm > 0),
    (
        ("gradient_checkpointing_interval",),
        "gradient_checkpointing",
        lambda config: config.gradient_checkpointing is not False,
    ),
    (
        ("group_offload_type", "group_offload_blocks_per_group"),
        "enable_group_offload",
        lambda config: config.enable_group_offload,
    ),
    (
        ("lora_rank", "lora_alpha", "lora_dropout", "lora_targets", "lora_init_type"),
        "lora_type",
        lambda config: config.lora_type == "standard",
    ),
    (
        tuple(
            name for name in TrainConfig.model_fields
            if name == "user_prompt_library" or (name.startswith("validation_") and name != "validation_disable")
        ),
        "validation_disable",
        lambda config: not config.validation_disable,
    ),
    (("publish_endpoint_url",), "publish_to", lambda config: config.publish_to is not None),
    (("tracker_project_name",), "report_to", lambda config: bool(config.report_to)),
)  # fmt: skip
"""Options that are parts of a feature, the option that decides whether it is on, and whether it is."""
OTHER_DATA = Problem(
    code="resumed_with_other_data", template="the pictures or captions have changed since the checkpoint"
)
"""The note of a run that goes on with other data."""


def recorded_options(config: TrainConfig, *, processes: int) -> dict[str, Any]:
    """Return all options as a checkpoint records them, with those that follow from others filled in."""
    return config.model_dump(mode="json") | {"lora_alpha": config.alpha, "processes": processes}


def continue_with(
    config: TrainConfig, before: Mapping[str, Any], *, processes: int, step: int
) -> tuple[TrainConfig, list[Problem]]:
    """Return the configuration with which a run goes on, and a problem that names each option that has changed.

    ``before`` is what ``recorded_options`` returned for the run until ``step``. Raises ``ConfigError`` for options that
    cannot change.
    """
    options = recorded_options(config, processes=processes)
    changed = [
        name for name in options if name not in _OF_THE_START and name in before and before[name] != options[name]
    ]
    idle = {name: switch for name in changed if (switch := _switch_of(name, config)) is not None}
    if refused := [name for name in changed if name in _FIXED and name not in idle]:
        raise ConfigError.of(_fixed(name, options[name], before[name]) for name in refused)
    kept = {name: before[name] for name in changed if name in _KEPT and name not in idle}
    notes = [
        _without_effect(name, options[name], before[name], idle[name], options[idle[name]])
        if name in idle
        else _kept(name, options[name], before[name])
        if name in kept
        else _takes_effect(name, options[name], before[name], step)
        for name in changed
    ]
    return config.model_copy(update=TrainConfig.model_validate(kept).model_dump(include=set(kept))), notes


def other_base(requested: str) -> ConfigError:
    """Return the error of a checkpoint of another base model. ``requested`` is the option's value."""
    return ConfigError(
        "resumed_with_other_base",
        "the checkpoint was trained on another base model",
        remedy="give the model that it was trained on; or another output_dir, to train a new adapter",
        field="resume_from_checkpoint",
        value=requested,
    )


def nothing_left(*, step: int, steps: int) -> Problem:
    """Return the note of a run whose checkpoint is at its last step, or past it."""
    return Problem(
        code="no_steps_left",
        template="no step is made and nothing is published: the checkpoint is of step {step}, and the run has {steps} steps",
        remedy_template="give a larger max_train_steps, or an earlier checkpoint in resume_from_checkpoint; or another "
        "output_dir, to start anew",
        field="max_train_steps",
        value=steps,
        details={"step": step, "steps": steps},
    )


def stopped_before(*, step: int) -> Problem:
    """Return the note of a run that has stopped early, and published, before."""
    return Problem(
        code="stopped_early_before",
        template="no step is made and nothing is published: the run has stopped early, after step {step}",
        remedy_template="raise it, or set it to 0, to go on; or give another output_dir, to start anew",
        field="early_stopping_patience",
        details={"step": step},
    )


def _switch_of(name: str, config: TrainConfig) -> str | None:
    """Return the option that switches off the feature that an option is a part of; None if it is on, or there is none."""
    return next((switch for names, switch, is_on in _PARTS if name in names and not is_on(config)), None)


def _fixed(name: str, given: object, before: object) -> Problem:
    return Problem(
        code="resumed_option_fixed",
        template="{before} in the checkpoint, and cannot change within a run",
        remedy_template="give {before}; or another output_dir, where init_lora starts from the adapter so far",
        field=name, value=_shown(given), details={"before": _shown(before)},
    )  # fmt: skip


def _kept(name: str, given: object, before: object) -> Problem:
    return Problem(
        code="resumed_option_kept",
        template="{before} in the checkpoint, whose weights go on: the option has no effect",
        field=name, value=_shown(given), details={"before": _shown(before)},
    )  # fmt: skip


def _without_effect(name: str, given: object, before: object, switch: str, state: object) -> Problem:
    return Problem(
        code="resumed_option_without_effect",
        template="{before} in the checkpoint; it has no effect with {switch} {state}",
        field=name, value=_shown(given),
        details={"before": _shown(before), "switch": switch, "state": _shown(state)},
    )  # fmt: skip


def _takes_effect(name: str, given: object, before: object, step: int) -> Problem:
    return Problem(
        code="resumed_option_changed",
        template="{before} in the checkpoint; takes effect after step {step}",
        field=name, value=_shown(given), details={"before": _shown(before), "step": step},
    )  # fmt: skip


def _shown(value: object) -> str:
    return "null" if value is None else show(value)
