"""Processes under torchrun, and the exit code of a Job."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image

from trainer.record.outcome import Outcome


def launch(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "trainer.loop.launch", "--standalone", "--nproc-per-node=2", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """Write a script that, by its first argument, exits with a code, dies of a signal, or waits for SIGTERM."""
    path = tmp_path / "script.py"
    path.write_text(
        "import os, signal, sys, time, pathlib\n"
        "action, folder = sys.argv[1:]\n"
        "if action == 'kill': os.kill(os.getpid(), signal.SIGKILL)\n"
        "if action != 'wait': sys.exit(int(action))\n"
        "def save(*_):\n"
        "    pathlib.Path(folder, 'saved-' + os.environ['RANK']).touch()\n"
        "    sys.exit(75)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "pathlib.Path(folder, 'started-' + os.environ['RANK']).touch()\n"
        "while True: time.sleep(0.1)\n"
    )
    return path


@pytest.mark.parametrize(
    ("action", "code"), [("0", Outcome.FINISHED), (f"{Outcome.BAD_CONFIG:d}", Outcome.BAD_CONFIG), ("kill", 137)]
)
def test_the_exit_code_is_that_of_the_processes(script: Path, action: str, code: int) -> None:
    launched = launch(str(script), action, str(script.parent))
    output, _ = launched.communicate()
    assert launched.returncode == code, output


def test_a_signal_reaches_the_processes_which_may_save(script: Path) -> None:
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


def test_the_processes_of_a_launcher_that_is_killed_end(tmp_path: Path) -> None:
    Image.new("RGB", (128, 128)).save(tmp_path / "0.png")
    (tmp_path / "0.txt").write_text("a black square", encoding="utf-8")
    options = {
        "model_flavour": "embedded", "instance_data_dir": tmp_path, "output_dir": tmp_path / "run", "resolution": 128,
        "max_train_steps": 100_000, "validation_disable": True,
    }  # fmt: skip
    launched = launch("-m", "lithograph", "train", *(f"{name}={value}" for name, value in options.items()))
    launcher = psutil.Process(launched.pid)
    deadline = time.monotonic() + 120
    while len(workers := launcher.children()) < 2:
        assert launched.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    launched.kill()
    launched.communicate()  # to the end of its processes' output, too
    assert not psutil.wait_procs(workers, timeout=60)[1]
