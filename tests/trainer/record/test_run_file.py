"""``run.json`` and ``metrics.jsonl`` as read while they are written, after a kill, and after a resume."""

import json
import math
import resource
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from longcat.errors import DataError, StorageError
from longcat.problem import Problem
from trainer.record.run_file import (
    METRICS_FILE,
    RUN_FILE,
    CacheRecord,
    CheckpointRecord,
    DatasetRecord,
    MetricsFile,
    MetricsLine,
    RunRecord,
    ValidationRecord,
    read_metrics,
    read_run,
    write_run,
)

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


def record(**changes: Any) -> RunRecord:
    given = {
        "run_id": "r", "pid": 7, "hostname": "here", "started": NOON, "updated": NOON, "code_version": "1",
        "total_steps": 100, "config": {"seed": 1},
    }  # fmt: skip
    return RunRecord.model_validate(given | changes)


def line(step: int, **changes: float) -> MetricsLine:
    given = {
        "loss": 0.5, "learning_rate": 1e-4, "gradient_norm": 1.0, "step_seconds": 0.1, "images_per_second": 10.0,
        "time": 1.0,
    }  # fmt: skip
    return MetricsLine.model_validate({"step": step} | given | changes)


def write_steps(folder: Path, *steps: int, after_step: int = 0) -> None:
    file = MetricsFile(folder, after_step=after_step)
    for step in steps:
        file.append(line(step))
    file.close()


def steps_in(folder: Path, after_step: int = 0) -> list[int]:
    return [line.step for line in read_metrics(folder, after_step)]


def strict(text: str) -> Any:
    """Parse JSON strictly, as a browser does: without NaN."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_a_record_comes_back_as_it_was_written(tmp_path: Path) -> None:
    later = NOON + timedelta(minutes=5)
    written = record(
        state="failed",
        phase="validating",
        ended=later,
        start_step=5,
        step=10,
        epoch=0.5,
        loss=0.25,
        cache={"latents": CacheRecord(done=3, total=4, hits=1)},
        dataset=DatasetRecord(pictures=4, dropped=1, steps_per_epoch=2.5),
        checkpoints=(CheckpointRecord(step=10, seconds=0.5, size_bytes=99, time=later),),
        validations=(ValidationRecord(step=10, images=("v/a.png",), passed=False, reasons=("grey",), time=later),),
        published="ink@3",
        message="no",
        problems=(Problem(code="no", template="no {what}", details={"what": "ink"}),),
        exit_code=75,
    )
    write_run(tmp_path, written, durable=True)
    assert read_run(tmp_path) == written
    plain = strict((tmp_path / RUN_FILE).read_text(encoding="utf-8"))
    assert (plain["started"], plain["ended"]) == ("2026-05-01T12:00:00Z", "2026-05-01T12:05:00Z")
    assert plain["checkpoints"][0]["size_bytes"] == 99
    assert [path.name for path in tmp_path.iterdir()] == [RUN_FILE]


def test_a_loss_that_is_not_finite_is_valid_json(tmp_path: Path) -> None:
    write_run(tmp_path, record(loss=math.nan, smoothed_loss=math.inf), durable=False)
    plain = strict((tmp_path / RUN_FILE).read_text(encoding="utf-8"))
    assert (plain["loss"], plain["smoothed_loss"]) == ("NaN", "Infinity")
    again = read_run(tmp_path)
    assert again.loss is not None
    assert math.isnan(again.loss)
    assert again.smoothed_loss == math.inf

    file = MetricsFile(tmp_path, after_step=0)
    file.append(line(1, loss=math.nan))
    file.close()
    assert strict((tmp_path / METRICS_FILE).read_text(encoding="utf-8"))["loss"] == "NaN"
    assert math.isnan(next(read_metrics(tmp_path)).loss)


def test_a_reader_never_sees_half_a_record(tmp_path: Path) -> None:
    records = [record(message="x" * size) for size in (10, 300_000)]
    write_run(tmp_path, records[0], durable=False)
    done = threading.Event()

    def write() -> None:
        for turn in range(200):
            write_run(tmp_path, records[turn % 2], durable=False)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not done.is_set():
        seen.add(len(read_run(tmp_path).message or ""))
    writer.join()
    assert seen <= {10, 300_000}
    assert seen


def test_a_directory_without_a_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"run\.json: does not exist; give the output_dir"):
        read_run(tmp_path)
    (tmp_path / RUN_FILE).write_text('{"run_id": ')
    with pytest.raises(DataError, match=r"run\.json: cannot be read"):
        read_run(tmp_path)
    assert steps_in(tmp_path) == []


def test_a_failed_write_is_a_storage_error(tmp_path: Path) -> None:
    file = tmp_path / "a-file"
    file.touch()
    with pytest.raises(StorageError, match=r"run\.json:? cannot be written"):
        write_run(file, record(), durable=False)
    with pytest.raises(StorageError, match=r"metrics\.jsonl: cannot be written"):
        MetricsFile(tmp_path / "gone", after_step=0)


def test_a_full_disk_is_a_storage_error(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path, after_step=0)
    for step in range(1, 100):
        file.append(line(step))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(StorageError, match=r"metrics\.jsonl: cannot be written: File too large; check the path"):
            file.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    file.close()
    assert steps_in(tmp_path) == list(range(1, 100))


def test_only_later_steps_are_read_and_no_incomplete_line(tmp_path: Path) -> None:
    write_steps(tmp_path, 1, 2, 3)
    assert steps_in(tmp_path, after_step=1) == [2, 3]
    with (tmp_path / METRICS_FILE).open("a") as stream:
        stream.write(line(4).model_dump_json())
    assert steps_in(tmp_path) == [1, 2, 3]
    with (tmp_path / METRICS_FILE).open("a") as stream:
        stream.write("\n")
    assert steps_in(tmp_path) == [1, 2, 3, 4]


def test_flush_writes_buffered_lines(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path, after_step=0)
    assert [file.append(line(step)) for step in (1, 2)] == [1, 2]
    assert steps_in(tmp_path) == []
    file.flush()
    assert steps_in(tmp_path) == [1, 2]
    assert file.append(line(3)) == 1
    file.close()
    assert steps_in(tmp_path) == [1, 2, 3]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    write_steps(tmp_path, 1)
    with (tmp_path / METRICS_FILE).open("a") as stream:
        stream.write("\0\0\0\n")
    with pytest.raises(DataError, match=r"metrics\.jsonl: line 2 is damaged"):
        steps_in(tmp_path)


@pytest.mark.parametrize("after_step", [0, 1, 3, 9])
def test_resuming_removes_later_lines(tmp_path: Path, after_step: int) -> None:
    write_steps(tmp_path, 1, 2, 3, 4)
    write_steps(tmp_path, after_step + 1, after_step=after_step)
    assert steps_in(tmp_path) == [*[step for step in (1, 2, 3, 4) if step <= after_step], after_step + 1]


def test_resuming_removes_a_line_truncated_anywhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_steps(tmp_path, 1, 2)
    whole = (tmp_path / METRICS_FILE).read_bytes()
    first = whole.index(b"\n") + 1
    for size in range(first + 1, len(whole)):
        caplog.clear()
        (tmp_path / METRICS_FILE).write_bytes(whole[:size])
        assert steps_in(tmp_path) == [1]
        write_steps(tmp_path, 2, 3, after_step=1)
        assert steps_in(tmp_path) == [1, 2, 3]
        assert "metrics damaged:" in caplog.text
        assert "lines removed 1" in caplog.text


def test_resuming_removes_damaged_lines(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_steps(tmp_path, 1, 2)
    path = tmp_path / METRICS_FILE
    path.write_bytes(path.read_bytes().replace(b"\n", b"\n\0\0\n{}\n", 1))
    write_steps(tmp_path, 3, after_step=2)
    assert steps_in(tmp_path) == [1, 2, 3]
    assert "lines removed 2" in caplog.text


def test_files_of_a_killed_writer_can_be_read_and_resumed(tmp_path: Path) -> None:
    code = (
        "import itertools, sys\n"
        "from pathlib import Path\n"
        "from tests.trainer.record.test_run_file import line, record\n"
        "from trainer.record.run_file import MetricsFile, write_run\n"
        "folder = Path(sys.argv[1])\n"
        "file = MetricsFile(folder, after_step=0)\n"
        "for step in itertools.count(1):\n"
        "    file.append(line(step))\n"
        "    file.flush()\n"
        "    write_run(folder, record(step=step, total_steps=10**9, message='x' * 100_000), durable=False)\n"
        "    if step == 50: print('going', flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"going\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert read_run(tmp_path).step >= 50
    seen = steps_in(tmp_path)
    assert seen == list(range(1, len(seen) + 1))
    write_steps(tmp_path, 41, after_step=40)
    write_run(tmp_path, record(step=41), durable=True)
    assert steps_in(tmp_path) == list(range(1, 42))
    assert sorted(path.name for path in tmp_path.iterdir()) == [METRICS_FILE, RUN_FILE]


def test_a_reader_needs_no_torch() -> None:
    code = "import sys, trainer.record.run_file, trainer.record.progress; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
