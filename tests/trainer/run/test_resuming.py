"""A training resumed under other options: each change is reported with both values, and the options used are recorded."""

import shutil
from pathlib import Path

import pytest

from longcat.adapter.artifact import list_versions
from longcat.storage.opening import open_storage
from tests.trainer.trainings import checkpoint, train
from trainer.record.run_file import read_metrics, read_run


@pytest.fixture(scope="module")
def half(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run of two steps."""
    output = tmp_path_factory.mktemp("half") / "run"
    done = train(pictures, output, max_train_steps=2, validation_disable="true")
    assert done.returncode == 0, done.stderr
    return output


@pytest.fixture
def run(half: Path, tmp_path: Path) -> Path:
    """Return a copy of that run, to resume."""
    return Path(shutil.copytree(half, tmp_path / "run"))


RESUMED = {"resume_from_checkpoint": "latest", "validation_disable": "true", "max_train_steps": 4}


def test_options_that_take_effect_are_used_recorded_and_named(pictures: Path, run: Path) -> None:
    done = train(pictures, run, **RESUMED | {"learning_rate": "1e-5", "use_ema": "true", "checkpointing_steps": 3})
    assert done.returncode == 0, done.stderr
    assert [line.learning_rate for line in read_metrics(run)] == [1e-3, 1e-3, 1e-5, 1e-5]
    record = read_run(run)
    assert record.config["learning_rate"] == 1e-5
    notes = {problem.field: str(problem) for problem in record.warnings if problem.code == "resumed_option_changed"}
    assert notes.keys() == {"learning_rate", "use_ema", "checkpointing_steps", "max_train_steps"}
    assert notes["learning_rate"] == "learning_rate = 1e-05: 0.001 in the checkpoint; takes effect after step 2"
    assert notes["learning_rate"] in done.stderr


def test_an_option_that_cannot_change_is_refused_before_a_model_is_loaded(pictures: Path, run: Path) -> None:
    done = train(pictures, run, **RESUMED | {"optimizer": "prodigy", "lora_rank": 8})
    assert done.returncode == 78, done.stderr
    assert "optimizer = prodigy: adamw in the checkpoint, and cannot change within a run" in done.stderr
    assert "lora_rank = 8: 16 in the checkpoint" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("steps", [2, 1])
def test_a_run_without_steps_left_is_logged_and_publishes_nothing(pictures: Path, run: Path, steps: int) -> None:
    storage = (run.parent / "adapters").as_uri()
    published = {"publish_to": storage, "adapter_name": "flat"}
    if steps == 2:  # not published so far: this is still to do
        done = train(pictures, run, **RESUMED | published | {"max_train_steps": steps})
        assert done.returncode == 0, done.stderr
        assert list(list_versions(open_storage(storage))) == [("flat", 1)]
        refused = train(pictures, run, **RESUMED | published | {"lora_rank": 8})
        assert refused.returncode == 78, refused.stderr  # and the run stays as finished as it was
        record = read_run(run)
        assert (record.state, record.step, record.published) == ("failed", 2, "flat@1")
    before = (run / "adapter.safetensors").read_bytes()
    again = train(pictures, run, **RESUMED | published | {"max_train_steps": steps})
    assert again.returncode == 0, again.stderr
    assert (
        f"max_train_steps = {steps}: no step is made and nothing is published: the checkpoint is of step 2"
        in again.stderr
    )
    assert "give a larger max_train_steps" in again.stderr
    assert len(list(list_versions(open_storage(storage)))) == (1 if steps == 2 else 0)
    assert (run / "adapter.safetensors").read_bytes() == before
    assert read_run(run).finished_step == 2
    assert checkpoint(run, 2).exists()
