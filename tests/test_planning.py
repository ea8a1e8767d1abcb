from pathlib import Path

import pytest
import torch

from longcat.errors import ConfigError
from longcat.flavour import Flavour
from tests.conftest import run_lithograph
from trainer import planning
from trainer.config import TrainConfig

CPU = torch.device("cpu")


def config(**changes: object) -> TrainConfig:
    return TrainConfig.model_validate({"model_flavour": "embedded", "resolution": 128, **changes})


def test_what_is_not_auto_is_left_alone(flavour: Flavour) -> None:
    given = config(base_model_precision="int8-torchao")
    assert planning.decide(given, flavour, CPU) is given


def test_auto_takes_what_slows_down_least_where_everything_fits(flavour: Flavour) -> None:
    decided = planning.decide(config(base_model_precision="auto", gradient_checkpointing="auto"), flavour, CPU)
    assert (decided.base_model_precision, decided.gradient_checkpointing) == ("no_change", False)


def test_auto_gives_up_speed_where_memory_is_short(flavour: Flavour, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = config(base_model_precision="auto", gradient_checkpointing="auto", train_batch_size=4)
    monkeypatch.setattr(planning, "device_bytes", lambda _: 75 * 2**20)
    decided = planning.decide(wanted, flavour, CPU)
    assert decided.base_model_precision != "no_change" or decided.gradient_checkpointing
    monkeypatch.setattr(planning, "device_bytes", lambda _: 2**20)
    with pytest.raises(ConfigError, match="validation_resolution"):
        planning.decide(wanted, flavour, CPU)


def test_the_plan_is_shown_without_data_or_weights(tmp_path: Path) -> None:
    done = run_lithograph("plan", "model_flavour=embedded", "--train_batch_size", "2", "resolution=128", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "activations" in done.stdout
    assert "it fits" in done.stdout
    assert list(tmp_path.iterdir()) == []
