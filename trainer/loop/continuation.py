"""Resuming from a checkpoint: the options that may change, that keep their old value, and that are rejected. No torch."""

from collections.abc import Mapping
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
    if refused := [name for name in changed if name in _FIXED]:
        raise ConfigError.of(_fixed(name, options[name], before[name]) for name in refused)
    kept = {name: before[name] for name in changed if name in _KEPT}
    notes = [
        _kept(name, options[name], before[name])
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


def _takes_effect(name: str, given: object, before: object, step: int) -> Problem:
    return Problem(
        code="resumed_option_changed",
        template="{before} in the checkpoint; takes effect after step {step}",
        field=name, value=_shown(given), details={"before": _shown(before), "step": step},
    )  # fmt: skip


def _shown(value: object) -> str:
    return "null" if value is None else show(value)
