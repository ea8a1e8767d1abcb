"""Servers as subprocesses on free loopback ports: start, watch, pause, stop. Each is stopped by its own process ids.

Only the one being measured runs; the others are suspended. Even without requests, LitServe's batching loop polls its queue a
thousand times a second.
"""

import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).resolve().parent.parent
EMBEDDED = ROOT / "longcat" / "embedded"

_ENVIRONMENT = ("OMP_WAIT_POLICY=passive", "GOMP_SPINCOUNT=0")
"""For all alike: OpenMP threads that spin starve each other on few cores. The service sets them itself."""
_READY_SECONDS = 600.0
_STOP_SECONDS = 70.0
"""Longer than the service's default grace."""
_KILL_SECONDS = 5.0
_POLL_SECONDS = 0.1
_SHOWN_LOG_BYTES = 4000


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to start a server."""

    name: str
    module: str
    options: tuple[str, ...]
    """All but the port."""
    ready_path: str
    """Answers 200 when the server can draw."""


def service(name: str, *, dtype: str, options: Sequence[str]) -> Recipe:
    """The product: ``lithograph serve`` with these options."""
    return Recipe(name=name, module="lithograph", options=("serve", "--dtype", dtype, *options), ready_path="/readyz")


def baseline(name: str, *, dtype: str, adapters: Path | None, threads: int, batch: int = 1, workers: int = 1) -> Recipe:
    """``loadtest.baseline``. ``threads`` are torch's in each worker; ``adapters`` is a folder."""
    folder = () if adapters is None else ("--adapters", str(adapters))
    numbers = {"threads": threads, "max-batch-size": batch, "workers-per-device": workers}
    return Recipe(
        name=name,
        module="loadtest.baseline",
        options=(
            *("--model", str(EMBEDDED), "--dtype", dtype),
            *folder,
            *(text for key, value in numbers.items() for text in (f"--{key}", str(value))),
        ),
        ready_path="/health",
    )


class ServerError(Exception):
    """A server that did not start; the message ends with its log."""


class Server:
    """A server of ours: its process, and those that it started."""

    def __init__(self, recipe: Recipe, log: Path) -> None:
        """Start it; ``wait_until_ready`` says when it can draw."""
        self.name = recipe.name
        self._ready_path = recipe.ready_path
        self._log = log
        self.port = _free_port()
        command = [
            *(shutil.which("env") or "env", *_ENVIRONMENT),
            *(sys.executable, "-m", recipe.module, *recipe.options, "--port", str(self.port)),
        ]
        with log.open("wb") as stream:
            self._main = subprocess.Popen(  # noqa: S603 - our own command
                command, cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
            )
        self._process = psutil.Process(self._main.pid)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def wait_until_ready(self) -> None:
        """Raises ``ServerError`` if it ends or is not ready in time."""
        deadline = time.monotonic() + _READY_SECONDS
        while time.monotonic() < deadline:
            if self._main.poll() is not None:
                raise ServerError(f"{self.name} ended with {self._main.returncode}:\n{self.log()}")
            try:
                if httpx.get(f"{self.url}{self._ready_path}", trust_env=False, timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                pass  # it does not listen yet
            time.sleep(_POLL_SECONDS)
        raise ServerError(f"{self.name} was not ready after {_READY_SECONDS:.0f} s:\n{self.log()}")

    def log(self) -> str:
        """The end of what it wrote."""
        return self._log.read_bytes()[-_SHOWN_LOG_BYTES:].decode(errors="replace")

    def cpu_seconds(self) -> float:
        """User and system time of all its processes since they started."""
        total = 0.0
        for process in self._tree():
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system
        return total

    def rss_bytes(self) -> dict[int, int]:
        """Resident memory of each of its processes, by process id."""
        sizes = {}
        for process in self._tree():
            try:
                sizes[process.pid] = process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        return sizes

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Let it run, with its measurement as the body; it is suspended before and after."""
        self._signal(signal.SIGCONT)
        self.wait_until_ready()
        try:
            yield
        finally:
            self.pause()

    def pause(self) -> None:
        """Suspend all its processes, so that it takes nothing from the one being measured."""
        self._signal(signal.SIGSTOP)

    def stop(self) -> None:
        """SIGTERM, and SIGKILL to whatever of it is left (LitServe alone leaves its children behind)."""
        tree = self._tree()
        self._signal(signal.SIGCONT)
        self._main.terminate()
        with suppress(subprocess.TimeoutExpired):  # killed below
            self._main.wait(_STOP_SECONDS)
        for end in (psutil.Process.terminate, psutil.Process.kill):
            for process in tree:
                with suppress(psutil.NoSuchProcess):  # psutil makes sure that the id has not become another process's
                    end(process)
            # Multiprocessing's resource tracker ignores SIGTERM, clears up once the others are gone, and ends by itself.
            _, tree = psutil.wait_procs(tree, timeout=_KILL_SECONDS)
        self._main.wait()

    def _tree(self) -> list[psutil.Process]:
        try:
            return [self._process, *self._process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _signal(self, number: signal.Signals) -> None:
        for process in self._tree():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)


@contextmanager
def running(recipes: Sequence[Recipe], logs: Path) -> Iterator[dict[str, Server]]:
    """Start all, one after the other, and pause each when it is ready; stop all at the end."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that nothing is left running
    servers: dict[str, Server] = {}
    try:
        for recipe in recipes:
            server = servers[recipe.name] = Server(recipe, logs / f"{recipe.name}.log")
            server.wait_until_ready()
            server.pause()
        yield servers
    finally:
        for server in servers.values():
            server.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
