"""Processes that torchrun starts, and the exit code that a Job sees."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainer.outcome import Outcome


def launch(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "trainer.launch", "--standalone", "--nproc-per-node=2", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """Does what it is told: exit with a number, die of a signal, or wait for SIGTERM."""
    path = tmp_path / "script.py"
    path.write_text(
        "import os, signal, sys, time, pathlib\n"
        "order, folder = sys.argv[1:]\n"
        "if order == 'kill': os.kill(os.getpid(), signal.SIGKILL)\n"
        "if order != 'wait': sys.exit(int(order))\n"
        "def save(*_):\n"
        "    pathlib.Path(folder, 'saved-' + os.environ['RANK']).touch()\n"
        "    sys.exit(75)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "pathlib.Path(folder, 'started-' + os.environ['RANK']).touch()\n"
        "while True: time.sleep(0.1)\n"
    )
    return path


@pytest.mark.parametrize(
    ("order", "code"), [("0", Outcome.FINISHED), (f"{Outcome.BAD_CONFIG:d}", Outcome.BAD_CONFIG), ("kill", 137)]
)
def test_it_ends_as_its_processes_do(script: Path, order: str, code: int) -> None:
    launched = launch(str(script), order, str(script.parent))
    output, _ = launched.communicate()
    assert launched.returncode == code, output


def test_told_to_stop_it_tells_its_processes_and_waits_for_them(script: Path) -> None:
    launched = launch(str(script), "wait", str(script.parent))
    deadline = time.monotonic() + 120
    while len(list(script.parent.glob("started-*"))) < 2:
        assert launched.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    launched.send_signal(signal.SIGTERM)
    output, _ = launched.communicate()
    assert launched.returncode == Outcome.PREEMPTED, output
    assert sorted(path.name for path in script.parent.glob("saved-*")) == ["saved-0", "saved-1"]
