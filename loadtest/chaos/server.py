"""``lithograph serve`` under a supervisor, which restarts it on the same port whenever it ends."""

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil

from loadtest.chaos.load import Load, answers
from loadtest.servers import ROOT, free_port

_READY_SECONDS = 300.0
_STOP_SECONDS = 90.0
_ORPHAN_SECONDS = 10.0
"""Time for the other processes to follow the main process."""
_LOOK_SECONDS = 0.1
_SHOWN_LOG_BYTES = 3000

ROLES = ("http", "engine", "manager", "main")


class ChaosError(Exception):
    """The campaign cannot continue."""


class ChaosServer:
    """One server, its processes, and the processes that outlived their main process."""

    def __init__(
        self,
        folder: Path,
        options: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        descriptors: int | None = None,
    ) -> None:
        """``descriptors``: limit on the open files of each process."""
        self.port = free_port()
        self.log_path = folder / f"serve-{self.port}.log"
        limit = () if descriptors is None else ("sh", "-c", f'ulimit -n {descriptors} && exec "$@"', "sh")
        serve = [sys.executable, "-m", "lithograph", "serve", "--port", str(self.port), *options]
        self._command = with_environment(environment or {}, [*limit, *serve])
        self._family: set[psutil.Process] = set()
        self.orphans: list[str] = []
        self.exit_codes: list[int] = []
        self._main: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        """Base URL of the server."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the main process."""
        with self.log_path.open("ab") as stream:
            self._main = subprocess.Popen(self._command, cwd=ROOT, stdout=stream, stderr=stream, start_new_session=True)

    def processes(self) -> dict[str, psutil.Process]:
        """Return the processes by role: manager and HTTP process are forked from main, the engine from a fork server."""
        found: dict[str, psutil.Process] = {}
        with suppress(psutil.NoSuchProcess):
            main = psutil.Process(self._main.pid)
            found["main"] = main
            own = main.cmdline()
            forked = []
            for child in sorted(main.children(), key=lambda process: process.create_time()):
                line = child.cmdline()
                if line == own:
                    forked.append(child)
                elif any("forkserver" in word for word in line):
                    found |= dict(zip(["engine"], child.children(), strict=False))
                elif not any("resource_tracker" in word for word in line):  # on a GPU the engine is spawned
                    found["engine"] = child
            found |= dict(zip(("manager", "http"), forked, strict=False))
            self._family |= {main, *main.children(recursive=True)}
        return found

    def signal(self, role: str, number: signal.Signals) -> None:
        """Send a signal to one process. Raises ``ChaosError`` if the server has no such process."""
        process = self.processes().get(role)
        if process is None:
            raise ChaosError(f"the server has no {role} process:\n{self.log()}")
        process.send_signal(number)

    async def wait_until_ready(self) -> None:
        """Wait for a start. Raises ``ChaosError`` if the server ends, or is not ready in time."""
        deadline = time.monotonic() + _READY_SECONDS
        while await answers(self.url, "/readyz", seconds=5) is None:
            if self._main.poll() is not None or time.monotonic() > deadline:
                raise ChaosError(f"the server is not ready:\n{self.log()}")
            await asyncio.sleep(_LOOK_SECONDS)
        self.processes()

    async def recovery_seconds(self, load: Load, begin: float) -> float:
        """Return the seconds from ``begin`` to a correct picture, or infinity. A server that has ended is started again."""
        while time.monotonic() < begin + _READY_SECONDS:
            self.processes()
            if self._main.poll() is not None:
                await self._after_end()
                self.start()
            if await answers(self.url, "/readyz", seconds=5) is not None and await load.is_right(self.url):
                self.processes()
                return time.monotonic() - begin
            await asyncio.sleep(_LOOK_SECONDS)
        return float("inf")

    async def replace(self) -> None:
        """Wait for the end of a server that was killed, start it again, and wait until it is ready."""
        await asyncio.to_thread(self._main.wait)
        await self._after_end()
        self.start()
        await self.wait_until_ready()

    async def stop(self) -> float:
        """Send SIGTERM and wait for the end; return the seconds that it took."""
        begin = time.monotonic()
        self.processes()
        if self._main.poll() is None:
            self._main.terminate()
        try:
            await asyncio.to_thread(self._main.wait, _STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._main.kill()
            self._main.wait()
        seconds = time.monotonic() - begin
        await self._after_end()
        return seconds

    def resident_bytes(self, role: str) -> int:
        """Return the resident memory of a process."""
        size: int = self.processes()[role].memory_info().rss
        return size

    def log(self) -> str:
        """Return the end of the log."""
        return self.log_path.read_bytes()[-_SHOWN_LOG_BYTES:].decode(errors="replace")

    async def _after_end(self) -> None:
        """Record the exit code and the processes that did not end with the main process; kill those."""
        self.exit_codes.append(self._main.returncode)
        deadline = time.monotonic() + _ORPHAN_SECONDS
        while (left := [process for process in self._family if _lives(process)]) and time.monotonic() < deadline:
            await asyncio.sleep(_LOOK_SECONDS)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                self.orphans.append(f"{process.pid} {' '.join(process.cmdline())[-120:]}")
                process.kill()
        self._family.clear()


@asynccontextmanager
async def running(server: ChaosServer) -> AsyncIterator[ChaosServer]:
    """Start a server and wait until it is ready; stop it in the end."""
    server.start()
    try:
        await server.wait_until_ready()
        yield server
    finally:
        await server.stop()


def with_environment(variables: Mapping[str, str], command: Sequence[str]) -> list[str]:
    """Return a command that runs another one with more environment variables."""
    return ["env", *(f"{name}={value}" for name, value in variables.items()), *command]


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
