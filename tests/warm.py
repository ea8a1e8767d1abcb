"""Commands of ours, forked from a process that has imported the libraries: importing them takes ten seconds of CPU time.

Our own modules are imported by each command itself. A command differs from one that a shell starts in two things only:
messages of libraries at import are not in its output, and environment variables that a library reads at import are those of
the tests. Where either matters, or where the start of a process is the subject, use ``run_cold`` or
``serve(cold=True)`` of ``tests.conftest``.
"""

import functools
import gc
import importlib
import inspect
import json
import multiprocessing.util
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from ctypes import CDLL
from pathlib import Path
from typing import Any

from longcat.logs import silence_import_noise
from tests import ROOT

_PRELOADED = (
    "service.process.server",
    "service.renderer",
    "lithograph.generation.generate",
    "trainer.run.pipeline",
    "studio.app",
)
_ANEW = ("lithograph", "longcat", "service", "studio", "trainer", "prometheus_client")
"""Packages that each command imports again. prometheus-client reads the environment when it is imported."""
_STARTERS = ("torch.distributed.run", "trainer.loop.launch")
"""Modules that start processes which import the libraries; the studio (``lithograph server``) does, too."""
_READ_AT_IMPORT = ("HF_", "MLFLOW_", "PYTHONPATH", "SWANLAB_", "WANDB_")
"""First letters of environment variables that libraries read when they are imported: with others, a command starts cold."""
FORK_SERVER = "forkserver"
"""The name of a fork server's process, whose command line is that of the command."""
_TIMEOUT_SECONDS = 300
_MESSAGE_BYTES = 2**17
_spawn: Any = vars(multiprocessing.util)["spawnv_passfds"]
_PR_SET_CHILD_SUBREAPER = 36
"""From Linux's ``sys/prctl.h``."""


def run_module(
    module: str, *arguments: str, cwd: Path, environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a module as ``subprocess.run`` does, with more environment variables; capture its output."""
    command = [sys.executable, "-m", module, *arguments]
    variables, pipe = {**os.environ, **environment}, subprocess.PIPE
    with WarmPopen(command, cwd=cwd, env=variables, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            stdout, stderr = process.communicate(timeout=_TIMEOUT_SECONDS)
        except BaseException:  # Ctrl-C too, and pytest's own: the command must not outlive its test
            process.kill()
            raise
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def lithograph(*arguments: str) -> list[str]:
    """Return the command line of a ``lithograph`` command."""
    return [sys.executable, "-m", "lithograph", *arguments]


class WarmPopen(subprocess.Popen[Any]):
    """A child process that runs a module: ``[sys.executable, *flags, "-m", module, *arguments]``. Others start cold."""

    nested: "Zygote | None" = None
    """The zygote of this process, if it is a command that starts others."""

    def _execute_child(self, *values: Any) -> None:
        """Have the child forked, in place of ``subprocess``'s fork and exec (their interface in Python 3.11 to 3.14)."""
        cold: Any = super()
        given = inspect.signature(cold._execute_child).bind(*values).arguments
        command, environment = given["args"], dict(os.environ if given["env"] is None else given["env"])
        if not _is_module(command) or given["shell"] or given["preexec_fn"] or _at_import(environment) != _OWN:
            cold._execute_child(*values)
            return
        at = command.index("-m")
        flags, module, arguments = command[1:at], command[at + 1], command[at + 2 :]
        request = {
            "module": module,
            "arguments": [os.fspath(argument) for argument in arguments],
            "is_safe_path": "-P" in flags,
            "cwd": os.fspath(given["cwd"] or "."),
            "environment": environment,
            "is_session": given["start_new_session"],
        }
        ends = [given[name] for name in ("p2cread", "c2pwrite", "errwrite")]
        zygote = self.nested or _of_tests()
        self.pid = zygote.fork(request, [number if end == -1 else end for number, end in enumerate(ends)])
        self._child_created = True
        pipes = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        cold._close_pipe_fds(*(given[name] for name in pipes))


def _is_module(command: object) -> bool:
    return isinstance(command, Sequence) and command[0] == sys.executable and "-m" in command[1:4]


def _at_import(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(_READ_AT_IMPORT)}


_OWN = _at_import(os.environ)


class Zygote:
    """The connection to the process that forks commands."""

    def __init__(self, connection: socket.socket, process: "subprocess.Popen[Any] | None" = None) -> None:
        """``process``: the zygote, if it is a child that nothing else refers to."""
        self._connection, self._process = connection, process
        self._lock = threading.Lock()

    def fork(self, request: dict[str, Any], files: Sequence[int]) -> int:
        """Have a command forked that has these files as standard input, output and error; return the id of its process.

        The zygote's child forks it and ends, so that it becomes a child of this process, its nearest subreaper.
        """
        with self._lock:
            _set_subreaper(True)
            try:
                socket.send_fds(self._connection, [json.dumps(request).encode()], files)
                return int(self._connection.recv(_MESSAGE_BYTES))
            finally:
                _set_subreaper(False)


def _set_subreaper(is_one: bool) -> None:
    assert CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(is_one), 0, 0, 0) == 0


@functools.cache
def _of_tests() -> Zygote:
    """Start the process that has imported the libraries; it ends with this one, whose end closes the connection."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its:
        command = [sys.executable, "-m", "tests.warm", str(its.fileno())]
        process = subprocess.Popen(command, cwd=ROOT, pass_fds=[its.fileno()], stdin=subprocess.DEVNULL)
    return Zygote(ours, process)


def _preload() -> None:
    silence_import_noise()
    for module in _PRELOADED:
        importlib.import_module(module)
    for name in [name for name in sys.modules if name.partition(".")[0] in _ANEW]:
        del sys.modules[name]
    gc.collect()
    gc.freeze()  # or each child would copy the pages of all objects at its first collection


def _serve(connection: socket.socket) -> None:
    """Fork a process for each request, until the connection is closed. Returns in a forked process, after its command."""
    while True:
        message, files, *_ = socket.recv_fds(connection, _MESSAGE_BYTES, 3)
        if not message:
            os._exit(0)
        read, write = os.pipe()
        middle = os.fork()
        if not middle:
            requester = os.getpid()
            if child := os.fork():
                os.write(write, str(child).encode())
                os._exit(0)
            while os.getppid() == requester:
                time.sleep(0.001)
            _become(json.loads(message), files)
            return
        os.waitpid(middle, 0)
        connection.send(os.read(read, 32))
        for number in (read, write, *files):
            os.close(number)


def _become(request: dict[str, Any], files: Sequence[int]) -> None:
    """Make this process what the command's would be after importing the libraries, and run it."""
    if request["is_session"]:
        os.setsid()
    for number, file in enumerate([os.dup(file) for file in files]):
        os.dup2(file, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.environ.clear()
    os.environ.update(request["environment"])
    tempfile.tempdir = None  # read from the environment again
    if threads := os.environ.get("OMP_NUM_THREADS"):
        importlib.import_module("torch").set_num_threads(int(threads))
    os.chdir(request["cwd"])
    sys.path[0:1] = [] if request["is_safe_path"] else [request["cwd"]]
    sys.argv = [request["module"], *request["arguments"]]
    if request["module"] in _STARTERS or sys.argv[1:2] == ["server"]:
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if not os.fork():
            ours.close()
            _serve(its)
            return
        its.close()
        WarmPopen.nested = Zygote(ours)
        vars(subprocess)["Popen"] = WarmPopen
        vars(sys)["modules"]["uvloop"] = None  # it would start processes by itself
    vars(multiprocessing.util)["spawnv_passfds"] = _start_fork_server
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


def _start_fork_server(path: str, arguments: Sequence[str], files: Sequence[int]) -> int:
    """Fork what ``multiprocessing`` would spawn, if that is a fork server: it has the libraries, too."""
    # A lock of another thread would stay locked: a second fork server is spawned. One thread waits for the parent's end.
    if "forkserver" not in arguments[-1] or threading.active_count() > 2:
        return _spawn(path, arguments, files)
    if child := os.fork():
        return child
    try:
        Path("/proc/self/comm").write_text(FORK_SERVER)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        begin = 3
        for file in [*sorted(files), os.sysconf("SC_OPEN_MAX")]:
            os.closerange(begin, file)
            begin = file + 1
        exec(arguments[-1], {"__name__": "__main__"})
    finally:
        os._exit(0)


if __name__ == "__main__":
    _preload()
    _serve(socket.socket(fileno=int(sys.argv[1])))
