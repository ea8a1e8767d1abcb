import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from longcat.errors import ConfigError
from longcat.flavour import EMBEDDED_FOLDER, Flavour
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


def test_the_plan_as_json_says_what_the_text_says(tmp_path: Path) -> None:
    done = run_lithograph(
        "plan", "--json", "model_flavour=embedded", "resolution=128", "base_model_precision=auto", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["settings"]["base_model_precision"] == "no_change"
    assert said["fits"]
    assert said["usable_bytes"] < said["device_bytes"]
    assert said["most_bytes"] == max(said["phases"].values())
    chosen = {key: value for key, value in said["settings"].items() if key != "text_encoder_1_precision"}
    assert next(o for o in said["alternatives"] if o["settings"] == chosen)["most_bytes"] == said["most_bytes"]


def test_a_gpu_that_is_elsewhere_is_planned_for_without_torch() -> None:
    program = """
import sys
from trainer.config import TrainConfig
from trainer.planning import forecast
config = TrainConfig(
    model_flavour="embedded", resolution=128, gradient_checkpointing="auto", train_batch_size=4, validation_disable=True
)
roomy, tight = (forecast(config, gpu_bytes=size * 2**20).as_json() for size in (4000, 44))
assert roomy["fits"] and roomy["dtype"] == "bfloat16", roomy
assert not roomy["settings"]["gradient_checkpointing"]
assert tight["fits"] and tight["settings"]["gradient_checkpointing"], tight
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_plan_and_auto_agree_on_what_fits() -> None:
    takes = planning.forecast(config(validation_disable=True), gpu_bytes=2**30).plan.most_bytes
    for share, fits in ((1.0, False), (0.91, False), (0.89, True)):
        room = int(takes / share)
        said = planning.forecast(config(validation_disable=True), gpu_bytes=room)
        assert said.as_json()["fits"] is fits
        assert ("it fits" in said.text()) is fits
        auto = planning.forecast(config(validation_disable=True, gradient_checkpointing="auto"), gpu_bytes=room)
        assert auto.as_json()["settings"]["gradient_checkpointing"] is not fits


def test_a_base_that_is_split_takes_less_of_each_device_but_while_it_draws() -> None:
    given = config(fsdp_enable=True)
    whole, split = (planning.forecast(given, gpu_bytes=2**30, processes=count).plan for count in (1, 4))
    assert split.base_bytes < whole.base_bytes
    assert split.peak_bytes["training"] < whole.peak_bytes["training"]
    assert split.peak_bytes["validation"] == whole.peak_bytes["validation"]
    assert "split in 4" in split.table()


def test_of_a_model_on_the_hub_only_descriptions_are_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "hub" / "models--meituan-longcat--LongCat-Image" / "snapshots" / "c0ffee"
    for part in ("", "scheduler", "text_encoder", "tokenizer", "transformer", "vae"):
        (snapshot / part).mkdir(parents=True, exist_ok=True)
        for file in (EMBEDDED_FOLDER / part).glob("*.json"):
            shutil.copy(file, snapshot / part)
    (refs := snapshot.parents[1] / "refs").mkdir()
    (refs / "main").write_text("c0ffee")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = run_lithograph("plan", "--gpu-gib", "24", "resolution=128", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "it fits" in done.stdout
