"""Servers as subprocesses on free loopback ports: start, watch, pause, stop. Each is stopped by its own process ids.

Only the measured server runs; the others are suspended, because even without requests LitServe's batching loop polls its
queue a thousand times a second.
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
"""OpenMP settings of all servers: spinning threads starve each other on few cores. The service sets them itself."""
_READY_SECONDS = 600.0
_STOP_SECONDS = 70.0
"""Longer than the service's default grace period."""
_KILL_SECONDS = 5.0
_POLL_SECONDS = 0.1
_SHOWN_LOG_BYTES = 4000


@dataclass(frozen=True, kw_only=True)
class ServerSetup:
    """The command line that starts a server."""

    name: str
    module: str
    options: tuple[str, ...]
    """Arguments without the port."""
    ready_path: str
    """Path that answers 200 once the server is ready."""
    environment: tuple[str, ...] = ()
    """More variables, as in ``NAME=VALUE``."""


def service(
    name: str, *, dtype: str, options: Sequence[str], model: str = "embedded", device: str = "auto"
) -> ServerSetup:
    """Set up the service: ``lithograph serve`` with these options."""
    common = ("--flavour", model, "--device", device, "--dtype", dtype)
    return ServerSetup(name=name, module="lithograph", options=("serve", *common, *options), ready_path="/readyz")


def baseline(
    name: str,
    *,
    dtype: str,
    model: Path,
    device: str,
    adapters: Path | None,
    threads: int,
    batch: int = 1,
    workers: int = 1,
) -> ServerSetup:
    """``loadtest.contestants.baseline``. ``threads`` are torch's in each worker; ``model`` and ``adapters`` are folders."""
    folder = () if adapters is None else ("--adapters", str(adapters))
    numbers = {"threads": threads, "max-batch-size": batch, "workers-per-device": workers}
    return ServerSetup(
        name=name,
        module="loadtest.contestants.baseline",
        options=(
            *("--model", str(model), "--device", device, "--dtype", dtype),
            *folder,
            *(text for key, value in numbers.items() for text in (f"--{key}", str(value))),
        ),
        ready_path="/health",
    )


class ServerError(Exception):
    """A server that did not start; the message ends with its log."""


class ServerProcess:
    """A started server: its process and that process's children."""

    def __init__(self, recipe: ServerSetup, log: Path) -> None:
        """Start the process; ``wait_until_ready`` returns once it is ready."""
        self.name = recipe.name
        self._ready_path = recipe.ready_path
        self._log = log
        self.port = free_port()
        command = [
            *(shutil.which("env") or "env", *_ENVIRONMENT, *recipe.environment),
            *(sys.executable, "-m", recipe.module, *recipe.options, "--port", str(self.port)),
        ]
        with log.open("wb") as stream:
            self._main = subprocess.Popen(
                command, cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
            )
        self._process = psutil.Process(self._main.pid)

    @property
    def url(self) -> str:
        """Base URL of the server."""
        return f"http://127.0.0.1:{self.port}"

    def wait_until_ready(self) -> None:
        """Wait until the server is ready. Raises ``ServerError`` if it ends, or is not ready in time."""
        deadline = time.monotonic() + _READY_SECONDS
        while time.monotonic() < deadline:
            if self._main.poll() is not None:
                raise ServerError(f"{self.name} ended with {self._main.returncode}:\n{self.log()}")
            try:
                if httpx.get(f"{self.url}{self._ready_path}", trust_env=False, timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                pass  # not listening yet
            time.sleep(_POLL_SECONDS)
        raise ServerError(f"{self.name} was not ready after {_READY_SECONDS:.0f} s:\n{self.log()}")

    def log(self) -> str:
        """Return the end of the server's log."""
        return self._log.read_bytes()[-_SHOWN_LOG_BYTES:].decode(errors="replace")

    def cpu_seconds(self) -> float:
        """Return the user and system time of all its processes since they started."""
        total = 0.0
        for process in self._tree():
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system
        return total

    def engines(self) -> list[psutil.Process]:
        """Return the service's engine processes on a CPU: the children of its fork server."""
        children = self._process.children()
        servers = [child for child in children if any("forkserver" in word for word in child.cmdline())]
        return [engine for server in servers for engine in server.children()]

    def rss_bytes(self) -> dict[int, int]:
        """Return the resident memory of each of its processes, by process id."""
        sizes = {}
        for process in self._tree():
            try:
                sizes[process.pid] = process.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        return sizes

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Resume the server for the body, and suspend it afterwards."""
        self._signal(signal.SIGCONT)
        self.wait_until_ready()
        try:
            yield
        finally:
            self.pause()

    def pause(self) -> None:
        """Suspend all its processes, so that they take no time from the server under measurement."""
        self._signal(signal.SIGSTOP)

    def stop(self) -> int:
        """Send SIGTERM, then SIGKILL to the processes that remain (plain LitServe leaves its children running).

        Return the exit code of the main process.
        """
        tree = self._tree()
        self._signal(signal.SIGCONT)
        self._main.terminate()
        with suppress(subprocess.TimeoutExpired):  # killed below
            self._main.wait(_STOP_SECONDS)
        for end in (psutil.Process.terminate, psutil.Process.kill):
            for process in tree:
                with suppress(psutil.NoSuchProcess):  # psutil makes sure that the id has not become another process's
                    end(process)
            # Multiprocessing's resource tracker ignores SIGTERM; it cleans up after the others and ends by itself.
            _, tree = psutil.wait_procs(tree, timeout=_KILL_SECONDS)
        return self._main.wait()

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
def running(recipes: Sequence[ServerSetup], logs: Path) -> Iterator[dict[str, ServerProcess]]:
    """Start the servers one after the other and suspend each once it is ready; stop them on exit."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no process is left running
    servers: dict[str, ServerProcess] = {}
    try:
        for recipe in recipes:
            server = servers[recipe.name] = ServerProcess(recipe, logs / f"{recipe.name}.log")
            server.wait_until_ready()
            server.pause()
        yield servers
    finally:
        for server in servers.values():
            server.stop()


def free_port() -> int:
    """Return a loopback port that no process listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
