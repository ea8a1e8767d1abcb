"""The progress of a run in its files, in its log, on a terminal and in TensorBoard."""

import logging
import math
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from longcat.errors import EngineError
from longcat.problem import Problem
from trainer.record.progress import RunProgress, StepReport
from trainer.record.run_file import CacheRecord, read_metrics, read_run

GREY = Problem(code="grey", template="the picture is grey")
DARK = Problem(code="dark", template="the picture is dark")


def run(folder: Path, **changes: Any) -> RunProgress:
    given: dict[str, Any] = {
        "run_id": "ink-1", "config": {"adapter_name": "ink", "seed": 7}, "total_steps": 100,
        "metrics_port": None, "pushgateway_url": None, "show_bar": False,
    }  # fmt: skip
    return RunProgress(folder, **(given | changes))


def report(step: int, *, loss: float = 0.5, seconds: float = 0.1, images: int = 1) -> StepReport:
    return StepReport(
        step=step, loss=loss, learning_rate=1e-4, gradient_norm=2.0, step_seconds=seconds, images=images
    )  # fmt: skip


def steps_in(folder: Path) -> list[int]:
    return [line.step for line in read_metrics(folder)]


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "lithograph.trainer")
    return caplog


def test_readers_follow_a_run_from_beginning_to_end(tmp_path: Path) -> None:
    with run(tmp_path) as progress:
        begun = read_run(tmp_path)
        assert (begun.state, begun.phase, begun.run_id, begun.pid) == ("running", "preparing", "ink-1", os.getpid())
        assert (begun.step, begun.total_steps, begun.loss, begun.eta_seconds) == (0, 100, None, None)
        assert (begun.config, begun.epoch, begun.ended) == ({"adapter_name": "ink", "seed": 7}, None, None)

        progress.dataset(pictures=8, dropped=1, steps_per_epoch=4)
        progress.phase("caching")
        progress.cache("latents", 8, 8, 3)
        assert read_run(tmp_path).phase == "caching"
        assert read_run(tmp_path).cache == {"latents": CacheRecord(done=8, total=8, hits=3)}

        progress.phase("training")
        progress.step(report(1, loss=1.0, seconds=0.2, images=2))
        progress.step(report(2, loss=0.5, seconds=0.2, images=2))
        progress.checkpoint(2, 0.25, 4096)
        trained = read_run(tmp_path)
        assert (trained.step, trained.loss, trained.epoch, trained.learning_rate) == (2, 0.5, 0.5, 1e-4)
        assert trained.smoothed_loss == pytest.approx(0.745, abs=0.005)  # a moving average: the later value weighs more
        assert trained.step_seconds == pytest.approx(0.2)
        assert trained.images_per_second == pytest.approx(10)
        assert trained.eta_seconds == pytest.approx(98 * 0.2)
        assert [(made.step, made.seconds, made.size_bytes) for made in trained.checkpoints] == [(2, 0.25, 4096)]
        lines = list(read_metrics(tmp_path))
        assert [(line.step, line.loss, line.images_per_second) for line in lines] == [
            (1, 1.0, pytest.approx(10)), (2, 0.5, pytest.approx(10))
        ]  # fmt: skip

        progress.phase("validating")
        progress.validation(2, ["validation/a.png"], [GREY, DARK])
        progress.phase("publishing")
        progress.published("ink@3")
        progress.finish("finished", (), 0)
    ended = read_run(tmp_path)
    assert (ended.state, ended.phase, ended.exit_code, ended.published) == ("finished", "publishing", 0, "ink@3")
    assert ended.ended is not None
    assert begun.started == ended.started <= ended.ended <= ended.updated
    (made,) = ended.validations
    assert (made.images, made.passed) == (("validation/a.png",), False)
    assert made.reasons == ("the picture is grey", "the picture is dark")
    assert made.problems == (GREY, DARK)


def test_the_first_step_is_written_at_once_and_later_ones_in_bundles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.record.stored_run._FLUSH_SECONDS", math.inf)
    with run(tmp_path) as progress:
        progress.step(report(1))
        assert steps_in(tmp_path) == [1]
        for step in range(2, 51):
            progress.step(report(step))
        assert steps_in(tmp_path) == [1]
        progress.step(report(51))
        assert len(steps_in(tmp_path)) == read_run(tmp_path).step == 51
        progress.step(report(52))
        progress.step(report(53, loss=math.nan))
        assert len(steps_in(tmp_path)) == 53
        loss = read_run(tmp_path).loss
        assert loss is not None
        assert math.isnan(loss)
        progress.step(report(54))
        progress.finish("finished", (), 0)
    assert len(steps_in(tmp_path)) == 54


@pytest.mark.parametrize("known", ["by the first step", "beforehand"])
def test_a_resumed_run_continues_in_the_same_files(known: str, tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    with run(tmp_path) as progress:
        for step in range(1, 8):
            progress.step(report(step))
            if step in (3, 6):
                progress.checkpoint(step, 0.1, 10)
                progress.validation(step, [], [])
        progress.finish("preempted", (), 75)
    with suppress(EngineError), run(tmp_path) as progress:
        progress.phase("caching")
        raise EngineError("engine_died", "ended before its first step was known")
    with run(tmp_path) as progress:
        assert read_run(tmp_path).state == "running"
        progress.phase("caching")
        assert len(steps_in(tmp_path)) == 7
        if known == "beforehand":
            progress.resumed(3)
        progress.step(report(4))
        progress.checkpoint(4, 0.1, 10)
        progress.finish("finished", (), 0)
    again = read_run(tmp_path)
    assert steps_in(tmp_path) == [1, 2, 3, 4]
    assert (again.start_step, again.step, again.exit_code) == (3, 4, 0)
    assert [made.step for made in again.checkpoints] == [3, 4]
    assert [made.step for made in again.validations] == [3]
    assert [record.getMessage() for record in log.records].count("resumed: step 3") == 1


def test_a_new_run_in_an_old_directory_starts_afresh(tmp_path: Path) -> None:
    for _ in range(2):
        with run(tmp_path) as progress:
            progress.step(report(1))
            progress.checkpoint(1, 0.1, 10)
            progress.finish("finished", (), 0)
        assert steps_in(tmp_path) == [1]
        assert len(read_run(tmp_path).checkpoints) == 1


def test_a_run_with_nothing_left_to_train_still_records_its_validation(tmp_path: Path) -> None:
    with run(tmp_path) as progress:
        progress.step(report(1))
        progress.checkpoint(1, 0.1, 10)
    with run(tmp_path, total_steps=1) as progress:
        progress.validation(1, [], [])
        progress.finish("finished", (), 0)
    assert read_run(tmp_path).step == 1
    assert len(read_run(tmp_path).checkpoints) == len(read_run(tmp_path).validations) == 1
    assert steps_in(tmp_path) == [1]


def test_a_damaged_record_is_replaced(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    (tmp_path / "run.json").write_text("{")
    with run(tmp_path) as progress:
        progress.resumed(0)
    assert "run record damaged: reason" in log.text
    assert read_run(tmp_path).run_id == "ink-1"


def test_a_run_that_ends_with_an_error_has_failed(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    with suppress(ValueError), run(tmp_path) as progress:
        progress.step(report(1))
        progress.step(report(2))
        raise ValueError('the loss is "nan"')
    failed = read_run(tmp_path)
    assert (failed.state, failed.message, failed.exit_code) == ("failed", 'ValueError: the loss is "nan"', None)
    assert [problem.code for problem in failed.problems] == ["unforeseen_error"]
    assert failed.ended is not None
    assert steps_in(tmp_path) == [1, 2]
    assert log.records[-1].levelno == logging.ERROR
    assert log.records[-1].getMessage().endswith(r', message "ValueError: the loss is \"nan\""')


def test_a_recorded_end_is_not_replaced(tmp_path: Path) -> None:
    with suppress(EngineError), run(tmp_path) as progress:
        progress.finish("failed", [GREY], 71)
        raise EngineError("engine_died", "ended")
    assert read_run(tmp_path).exit_code == 71


def test_other_ranks_write_and_log_nothing(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    with run(tmp_path, writes=False, report_to=("tensorboard",), show_bar=True) as progress:
        progress.resumed(3)
        progress.phase("caching")
        progress.cache("latents", 1, 1, 0)
        progress.finish("finished", (), 0)
    assert not list(tmp_path.iterdir())
    assert not log.records


def test_every_event_is_logged_with_its_fields(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    with run(tmp_path, total_steps=3) as progress:
        progress.phase("caching")
        progress.cache("latents", 1, 2, 0)
        progress.cache("latents", 2, 2, 1)
        for step in (1, 2, 3):
            progress.step(report(step))
        progress.checkpoint(3, 0.25, 4096)
        progress.validation(3, ["a.png"], [GREY, DARK])
        progress.warn(GREY)
        progress.validation(3, ["a.png"], [])
        progress.published("ink@3")
        progress.finish("finished", (), 0)
    logged = [record.getMessage() for record in log.records if record.name == "lithograph.trainer"]
    assert logged[:-1] == [
        f"started: run id ink-1, adapter ink, seed 7, total steps 3, output dir {tmp_path}",
        "phase: name caching",
        "cached: kind latents, done 2, total 2, hits 1",
        "step: step 1, total steps 3, loss 0.5, smoothed loss 0.5, learning rate 0.0001, gradient norm 2, "
        "step seconds 0.1, images per second 10, eta seconds 0.2",
        "step: step 3, total steps 3, loss 0.5, smoothed loss 0.5, learning rate 0.0001, gradient norm 2, "
        "step seconds 0.1, images per second 10, eta seconds 0",
        "checkpoint: step 3, seconds 0.25, size bytes 4096",
        'validation: step 3, passed false, images 1, reasons "the picture is grey. the picture is dark"',
        'warning: note "the picture is grey"',
        "validation: step 3, passed true, images 1",
        "published: adapter ink@3",
    ]
    assert read_run(tmp_path).warnings == (GREY,)
    assert re.fullmatch(r"finished: step 3, seconds [0-9.e-]+, exit code 0", logged[-1])


def test_a_long_activity_is_logged_at_intervals(
    tmp_path: Path, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.record.progress._LOG_SECONDS", -1.0)  # every line is due
    with run(tmp_path) as progress:
        progress.cache("latents", 1, 2, 0)
        for step in (1, 2, 3):
            progress.step(report(step))
        progress.denoising(1, 8, "the base, 128x128")
    events = [record.getMessage().partition(":")[0] for record in log.records]
    assert events == ["started", "cached", "step", "step", "step", "denoising", "failed"]
