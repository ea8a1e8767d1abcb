"""Ending with a parent, also with one that ended before its child could ask for that."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

CHILD = """
import sys, time
from longcat.process.parent import kill_with_parent
print("begun", flush=True)
sys.stdin.readline()
kill_with_parent()
print("asked", flush=True)
time.sleep(600)
"""
PARENT = f"""
import subprocess, sys, time
print(subprocess.Popen([sys.executable, "-c", {CHILD!r}]).pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def family() -> Iterator[tuple[subprocess.Popen[str], psutil.Process]]:
    """Return a process in a group of its own, and its child, which waits for a line."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=pipe, stdout=pipe, text=True, start_new_session=True, cwd=Path.cwd()
    ) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        assert parent.stdout.readline() == "begun\n"
        yield parent, child
        parent.kill()
        if child.is_running():
            child.kill()


def tell(parent: subprocess.Popen[str]) -> None:
    assert parent.stdin is not None
    parent.stdin.write("\n")
    parent.stdin.flush()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such signal")
@pytest.mark.parametrize("is_early", [True, False])
def test_a_process_ends_with_its_parent(
    family: tuple[subprocess.Popen[str], psutil.Process], *, is_early: bool
) -> None:
    parent, child = family
    assert parent.stdout is not None
    if not is_early:
        tell(parent)
        assert parent.stdout.readline() == "asked\n"
        assert child.is_running()
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    if is_early:
        assert child.is_running()
        tell(parent)
    assert not psutil.wait_procs([child], timeout=60)[1]
    assert parent.stdout.readline() == ""
