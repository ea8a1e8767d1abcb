import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from longcat.errors import ConfigError
from longcat.model.flavour import EMBEDDED_FOLDER, PUBLISHED_FOLDER, Flavour
from longcat.model.memory.autoencoder import read_autoencoder
from longcat.model.memory.weights import read_text_encoder, read_transformer
from longcat.model.precision import Precision
from tests.conftest import run_lithograph
from trainer.config.options import TrainConfig
from trainer.memory import forecast as forecasts

CPU = torch.device("cpu")


def config(**changes: object) -> TrainConfig:
    return TrainConfig.model_validate({"model_flavour": "embedded", "resolution": 128, **changes})


def test_settings_that_are_not_auto_are_kept(flavour: Flavour) -> None:
    given = config(base_model_precision="int8-torchao")
    assert forecasts.decide(given, flavour, CPU) is given


def test_auto_takes_what_slows_down_least_where_everything_fits(flavour: Flavour) -> None:
    decided = forecasts.decide(config(base_model_precision="auto", gradient_checkpointing="auto"), flavour, CPU)
    assert (decided.base_model_precision, decided.gradient_checkpointing) == ("no_change", False)


def test_auto_trades_speed_for_memory_where_memory_is_short(flavour: Flavour, monkeypatch: pytest.MonkeyPatch) -> None:
    given = config(base_model_precision="auto", gradient_checkpointing="auto", train_batch_size=4)
    monkeypatch.setattr(forecasts, "device_bytes", lambda _: 75 * 2**20)
    decided = forecasts.decide(given, flavour, CPU)
    assert decided.base_model_precision != "no_change" or decided.gradient_checkpointing
    monkeypatch.setattr(forecasts, "device_bytes", lambda _: 2**20)
    with pytest.raises(ConfigError, match="lower validation_resolution"):
        forecasts.decide(given, flavour, CPU)


def test_the_plan_is_shown_without_data_or_weights(tmp_path: Path) -> None:
    done = run_lithograph("plan", "model_flavour=embedded", "--train_batch_size", "2", "resolution=128", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "activations" in done.stdout
    assert "it fits" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_plan_as_json(tmp_path: Path) -> None:
    done = run_lithograph(
        "plan", "--json", "model_flavour=embedded", "resolution=128", "base_model_precision=auto", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed["settings"]["base_model_precision"] == "no_change"
    assert printed["fits"]
    assert printed["usable_bytes"] < printed["device_bytes"]
    assert printed["most_bytes"] == max(printed["phases"].values())
    chosen = {key: value for key, value in printed["settings"].items() if key != "text_encoder_1_precision"}
    assert next(o for o in printed["alternatives"] if o["settings"] == chosen)["most_bytes"] == printed["most_bytes"]


def test_a_plan_for_another_machines_gpu_imports_no_torch() -> None:
    program = """
import sys
from trainer.config.options import TrainConfig
from trainer.memory.forecast import forecast
config = TrainConfig(
    model_flavour="embedded", resolution=128, gradient_checkpointing="auto", train_batch_size=4, validation_disable=True
)
roomy, tight = (forecast(config, gpu_bytes=size * 2**20).as_json() for size in (4000, 38))
assert roomy["fits"] and roomy["dtype"] == "bfloat16", roomy
assert not roomy["settings"]["gradient_checkpointing"]
assert tight["fits"] and tight["settings"]["gradient_checkpointing"], tight
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_plan_and_auto_agree_on_what_fits() -> None:
    takes = forecasts.forecast(config(validation_disable=True), gpu_bytes=2**30).plan.most_bytes
    for share, fits in ((1.0, False), (0.91, False), (0.89, True)):
        total = int(takes / share)
        planned = forecasts.forecast(config(validation_disable=True), gpu_bytes=total)
        assert planned.as_json()["fits"] is fits
        assert ("it fits" in planned.text()) is fits
        auto = forecasts.forecast(config(validation_disable=True, gradient_checkpointing="auto"), gpu_bytes=total)
        assert auto.as_json()["settings"]["gradient_checkpointing"] is not fits


def test_a_split_base_takes_less_of_each_device_except_in_validation() -> None:
    given = config(fsdp_enable=True)
    whole, split = (forecasts.forecast(given, gpu_bytes=2**30, processes=count).plan for count in (1, 4))
    assert split.base_bytes < whole.base_bytes
    assert split.peak_bytes["training"] < whole.peak_bytes["training"]
    assert split.peak_bytes["validation"] == whole.peak_bytes["validation"]
    assert "split in 4" in split.table()


def test_a_plan_for_a_model_on_the_hub_needs_its_json_files_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_sizes_count_before_there_is_a_dataset() -> None:
    small, large = (
        forecasts.forecast(config(resolution=sizes, validation_disable=True), gpu_bytes=2**30).plan
        for sizes in ("128x128", "128x128,512x256")
    )
    assert small.activation_bytes < large.activation_bytes


def test_the_published_flavours_are_planned_without_the_hub(tmp_path: Path) -> None:
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    for name in ("final", "dev"):
        done = run_lithograph("plan", "--gpu-gib", "24", f"model_flavour={name}", cwd=tmp_path, **offline)
        assert done.returncode == 0, done.stderr
    transformer, text_encoder = read_transformer(PUBLISHED_FOLDER), read_text_encoder(PUBLISHED_FOLDER)
    blocks = transformer.block_bytes(Precision.NO_CHANGE, 2)
    # As published: 6.27 B parameters, 7.07 B in the language model without its head, and 83.8 M in the VAE.
    assert (sum(blocks) + transformer.top_bytes(2)) / 2 == pytest.approx(6.27e9, rel=1e-3)
    assert text_encoder.weight_bytes(Precision.NO_CHANGE, 2) / 2 == pytest.approx(7.07e9, rel=1e-3)
    assert read_autoencoder(PUBLISHED_FOLDER).weight_bytes(4) / 4 == pytest.approx(83.8e6, rel=1e-3)
