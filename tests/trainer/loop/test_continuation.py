"""Options and optimizers of a run that resumes from a checkpoint."""

import io
from typing import Any

import pytest
import torch
from torch import nn

from longcat.errors import ConfigError
from trainer.config.options import TrainConfig
from trainer.loop.continuation import continue_with, recorded_options
from trainer.loop.optimizer import OptimizerSettings, make_optimizer, make_schedule, restore, set_mode


def config(**options: object) -> TrainConfig:
    return TrainConfig.model_validate({"model_flavour": "embedded", **options})


BEFORE = recorded_options(config(), processes=1)


def test_unchanged_options_are_not_reported() -> None:
    for same in (config(), config(lora_alpha=16, resume_from_checkpoint="latest")):
        assert continue_with(same, BEFORE, processes=1, step=5) == (same, [])


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "prodigy"}, {"lora_rank": 8}, {"lora_alpha": 4}, {"lora_targets": "all-linear"}, {"use_dora": True},
        {"use_rslora": True},
    ],
)  # fmt: skip
def test_options_that_cannot_change_are_refused_by_name(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as caught:
        continue_with(config(**changes), BEFORE, processes=1, step=5)
    problems = {problem.field: problem for problem in caught.value.problems}
    assert changes.keys() <= problems.keys()
    assert {problem.code for problem in problems.values()} == {"resumed_option_fixed"}


@pytest.mark.parametrize(
    "changes",
    [
        {"learning_rate": 1e-5}, {"lr_scheduler": "cosine"}, {"seed": 7}, {"train_batch_size": 2}, {"use_ema": True},
        {"max_train_steps": 9}, {"resolution": 512}, {"validation_prompts": ["a cat"]}, {"gradient_checkpointing": True},
    ],
)  # fmt: skip
def test_other_options_take_effect_and_are_named(changes: dict[str, Any]) -> None:
    given = config(**changes)
    ((name, _),) = changes.items()
    after, (note,) = continue_with(given, BEFORE, processes=1, step=5)
    assert after == given
    assert (note.code, note.field, note.details["step"]) == ("resumed_option_changed", name, 5)


@pytest.mark.parametrize(
    ("changes", "options", "switch"),
    [
        ({"ema_decay": 0.5}, {}, "use_ema false"),
        ({"lr_power": 2}, {"lr_scheduler": "cosine"}, "lr_scheduler cosine"),
        ({"lr_scheduler": "cosine"}, {"optimizer": "adamw-schedulefree"}, "optimizer adamw-schedulefree"),
        ({"lr_warmup_steps": 5}, {"lr_scheduler": "constant"}, "lr_scheduler constant"),
        ({"gradient_checkpointing_interval": 2}, {}, "gradient_checkpointing false"),
        ({"validation_steps": 5}, {"validation_disable": True}, "validation_disable true"),
        ({"lora_rank": 8}, {"lora_type": "lycoris", "lycoris_config": {"algo": "lokr"}}, "lora_type lycoris"),
    ],
)
def test_options_of_a_feature_that_is_off_have_no_effect(
    changes: dict[str, Any], options: dict[str, Any], switch: str
) -> None:
    before = recorded_options(config(**options), processes=1)
    _, notes = continue_with(config(**options | changes), before, processes=1, step=5)
    assert {note.code for note in notes} == {"resumed_option_without_effect"}
    assert f"it has no effect with {switch}" in str(notes[0])


def test_an_option_of_a_feature_that_is_switched_on_takes_effect() -> None:
    _, notes = continue_with(config(use_ema=True, ema_decay=0.5), BEFORE, processes=1, step=5)
    assert {note.code for note in notes} == {"resumed_option_changed"}


def test_options_of_the_first_step_are_kept() -> None:
    after, (note,) = continue_with(config(lora_init_type="gaussian"), BEFORE, processes=1, step=5)
    assert after == config()
    assert (
        str(note)
        == "lora_init_type = gaussian: default in the checkpoint, whose weights go on: the option has no effect"
    )


def settings(**options: object) -> OptimizerSettings:
    made: dict[str, Any] = {
        "optimizer": "adamw", "learning_rate": 1e-3, "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_weight_decay": 0.01,
        "adam_epsilon": 1e-8, "lr_scheduler": "constant", "lr_warmup_steps": 0, "lr_num_cycles": 1, "lr_power": 1.0,
        "lr_end": 0.0,
    }  # fmt: skip
    return OptimizerSettings(**made | options)


def steps(parameter: nn.Parameter, optimizer: Any, schedule: Any, count: int) -> list[float]:
    rates = []
    for _ in range(count):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        rates.append(float(schedule.get_last_lr()[0]))
        schedule.step()
    return rates


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("name", "scheduler"),
    [
        *(("adamw", scheduler) for scheduler in ("constant_with_warmup", "linear", "cosine", "polynomial")),
        ("adamw8bit", "cosine"),
        ("adamw-schedulefree", "constant"),
        ("prodigy", "linear"),
    ],
)
def test_an_optimizer_goes_on_with_the_rate_of_its_new_options(name: str, scheduler: str) -> None:
    """Expect the result of an optimizer with the new options from the start; with the same options, bit for bit."""
    whole = settings(optimizer=name, lr_scheduler=scheduler, learning_rate=5e-4)
    expected = steps(*(made := machine(whole)), 8)
    for before in (settings(optimizer=name), whole):
        parameter, optimizer, schedule = machine(before)
        steps(parameter, optimizer, schedule, 3)
        set_mode(optimizer, training=False)
        state = {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
        file = io.BytesIO()
        torch.save(state, file)
        set_mode(optimizer, training=True)
        _, optimizer, schedule = resumed = (parameter, *machine(whole, parameter)[1:])
        restore(optimizer, schedule, torch.load(io.BytesIO(file.getvalue()), weights_only=True))
        set_mode(optimizer, training=True)
        assert steps(*resumed, 5) == pytest.approx(expected[3:])
        if before == whole and name != "adamw-schedulefree":  # it steps from the parameters of evaluation mode
            assert torch.equal(parameter, made[0])


def machine(options: OptimizerSettings, parameter: nn.Parameter | None = None) -> tuple[nn.Parameter, Any, Any]:
    parameter = nn.Parameter(torch.zeros(4)) if parameter is None else parameter
    optimizer = make_optimizer([parameter], options)
    return parameter, optimizer, make_schedule(optimizer, options, steps=8)
