"""The use by key, day and model: exact, whichever process is killed."""

import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import pytest

from longcat.errors import StorageError
from service.access.usage import FILE, UsageLedger, create_ledger, read_usage
from service.wire.messages import DeviceUsage
from tests import ROOT
from tests.conftest import fill

DAY = date(2026, 11, 28)
ONE = DeviceUsage(requests=1, pictures=2, pixel_steps=300, device_seconds=0.5)
EVER = {"since": date.min, "until": date.max}

_ADDS = """
import sys, datetime, pathlib
from service.access.usage import UsageLedger
from service.wire.messages import DeviceUsage
ledger = UsageLedger(pathlib.Path(sys.argv[1]))
while True:
    ledger.add(DeviceUsage(requests=1, pictures=1), key="k", day=datetime.date(2026, 11, 28), model="m").result()
    sys.stdout.write(".")
    sys.stdout.flush()
"""


def test_use_is_added_up_by_key_day_and_model(tmp_path: Path) -> None:
    ledger = UsageLedger(tmp_path / "state")
    for key in ("a", "a", "b", None):
        ledger.add(ONE, key=key, day=DAY, model="m")
    ledger.add(ONE, key="a", day=date(2026, 12, 1), model="m")
    ledger.add(ONE, key="a", day=DAY, model="other").result()
    report = read_usage(tmp_path / "state", **EVER)
    assert [(row.key, row.day.day, row.model, row.pictures) for row in report.usage] == [
        (None, 28, "m", 2), ("a", 28, "m", 4), ("a", 28, "other", 2), ("b", 28, "m", 2), ("a", 1, "m", 2),
    ]  # fmt: skip
    assert report.total == DeviceUsage(requests=6, pictures=12, pixel_steps=1800, device_seconds=3.0)
    assert read_usage(tmp_path / "state", since=DAY, until=DAY, key="a").total.requests == 3
    assert read_usage(tmp_path / "state", since=date(2026, 12, 1), until=date.max).total.requests == 1
    assert read_usage(tmp_path / "state", **EVER, key="nobody").usage == ()
    ledger.close()
    create_ledger(tmp_path / "state")  # a later start keeps what is there
    assert read_usage(tmp_path / "state", **EVER).total.requests == 6


def test_processes_add_to_one_file(tmp_path: Path) -> None:
    ledgers = [UsageLedger(tmp_path) for _ in range(4)]
    with ThreadPoolExecutor() as pool:
        written = [pool.submit(ledgers[i % 4].add, ONE, key="k", day=DAY, model="m") for i in range(400)]
    for future in written:
        future.result().result()
    assert read_usage(tmp_path, **EVER).total.requests == 400


@pytest.mark.parametrize("seed", range(4))
def test_what_was_written_is_there_once_after_a_kill(tmp_path: Path, seed: int) -> None:
    """Each dot was printed once its picture was counted: the dots, and at most one picture more, are there."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", _ADDS, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, cwd=tmp_path) as process:
        assert process.stdout is not None
        dots = len(process.stdout.read(50))
        time.sleep(random.Random(seed).random() * 0.3)
        process.send_signal(signal.SIGKILL)
        dots += len(process.stdout.read())
    assert dots <= read_usage(tmp_path, **EVER).total.pictures <= dots + 1
    UsageLedger(tmp_path).add(ONE, key="k", day=DAY, model="m").result()  # and it can be written again
    assert dots + 2 <= read_usage(tmp_path, **EVER).total.pictures <= dots + 3


def test_use_that_a_full_disk_does_not_take_is_written_later(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = UsageLedger(small_disk / "state")
    filler = fill(small_disk)
    for key in range(300):  # until the pages that are there are full
        ledger.add(ONE, key=f"key-{key}", day=DAY, model="m").result()
    assert [record.levelname for record in caplog.records if "usage" in record.getMessage()] == ["ERROR"]
    filler.unlink()
    ledger.add(ONE, key="last", day=DAY, model="m").result()
    assert read_usage(small_disk / "state", **EVER).total.requests == 301
    ledger.close()


@pytest.mark.parametrize("content", [b"no database", b"SQLite format 3\0" + bytes(200)])
def test_a_damaged_file_is_an_error_at_start(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(StorageError) as raised:
        create_ledger(tmp_path)
    (problem,) = raised.value.problems
    assert (problem.code, problem.field) == ("usage_unusable", "--state-dir")
    assert (tmp_path / FILE).read_bytes() == content


def test_a_directory_that_cannot_be_made_is_an_error_at_start(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="--state-dir"):
        create_ledger(tmp_path / "file")
