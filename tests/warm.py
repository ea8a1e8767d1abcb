"""The ``lithograph`` command, forked from a process that has imported its modules: importing takes seconds each time.

Importing does nothing (``tests/test_imports.py`` holds it), so that such a command differs from one that a shell starts in
two things only: messages of libraries at import are not in its output, and environment variables that a library reads at
import are those of the tests. Where either matters, use ``tests.conftest.run_lithograph``.
"""

import atexit
import functools
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from longcat.logs import silence_import_noise
from tests import ROOT

_PRELOADED = ("lithograph.generate", "trainer.run.pipeline")
_TIMEOUT_SECONDS = 300


def run_warm(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command as ``run_lithograph`` does. One runs at a time."""
    process, lock = _preloaded()
    with lock, tempfile.TemporaryDirectory() as folder:
        output = {name: Path(folder, name) for name in ("stdout", "stderr")}
        request = {"arguments": arguments, "cwd": str(cwd), "environment": dict(os.environ)}
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(request | {name: str(path) for name, path in output.items()}) + "\n")
        process.stdin.flush()
        limit = threading.Timer(_TIMEOUT_SECONDS, os.kill, (int(process.stdout.readline()), signal.SIGKILL))
        limit.start()
        code = int(process.stdout.readline())
        limit.cancel()
        stdout, stderr = (path.read_text(encoding="utf-8") for path in output.values())
        return subprocess.CompletedProcess(["lithograph", *arguments], code, stdout, stderr)


@functools.cache
def _preloaded() -> tuple[subprocess.Popen[str], threading.Lock]:
    """Start the process that has imported the modules; it ends with the tests, whose end closes its input."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.warm"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    atexit.register(process.stdin.close)
    return process, threading.Lock()


def _serve() -> None:
    """Fork a child for each request, and answer with its id and its exit code. Returns in a child, or at the end."""
    silence_import_noise()
    for module in _PRELOADED:
        importlib.import_module(module)
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if not child:
            _become(request)
            return
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _become(request: dict[str, object]) -> None:
    """Run the command in this process, whose exit is the command's."""
    for number, name in enumerate((os.devnull, request["stdout"], request["stderr"])):
        os.dup2(os.open(str(name), os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT), number)
    environment, arguments = request["environment"], request["arguments"]
    assert isinstance(environment, dict)
    assert isinstance(arguments, list)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(str(request["cwd"]))
    sys.path[0] = str(request["cwd"])
    sys.argv = ["lithograph", *arguments]
    runpy.run_module("lithograph", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _serve()
