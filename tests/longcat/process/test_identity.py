"""The identity of a process does not change with the wall clock."""

import os
from pathlib import Path

import psutil
import pytest

from longcat.process.identity import is_process, started_after_boot


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="Linux's /proc")
@pytest.mark.parametrize("seconds", [7200, -7200, 2])
def test_a_clock_that_jumps_makes_no_other_process_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    started, created = started_after_boot(os.getpid()), psutil.Process().create_time()
    lines = Path("/proc/stat").read_text().splitlines()
    boot = next(int(line.split()[1]) for line in lines if line.startswith("btime"))
    # What the kernel shows after the clock was set: the time of the boot has moved with it.
    (tmp_path / "stat").write_text("\n".join(f"btime {boot + seconds}" if "btime" in line else line for line in lines))
    (tmp_path / str(os.getpid())).symlink_to(f"/proc/{os.getpid()}")
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))
    assert abs(psutil.Process().create_time() - created - seconds) < 1
    assert is_process(os.getpid(), started)


def test_a_process_of_another_start_is_another() -> None:
    assert not is_process(os.getpid(), started_after_boot(os.getpid()) - 60)
    assert not is_process(2**22 + 1, 1.0)
