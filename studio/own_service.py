"""A service of the studio's own: ``lithograph serve`` as a child process, started again when it ends."""

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from pathlib import Path

import psutil

from studio.config import StudioConfig
from studio.link import Link
from trainer.atomic import write_atomically

log = logging.getLogger("lithograph.studio")

_GRACE_SECONDS = 5
_PATIENCE_SECONDS = 20
"""From SIGTERM to SIGKILL: more than it takes to drain."""
_LONGEST_PAUSE_SECONDS = 30.0
_LONG_LIFE_SECONDS = 60.0
"""A process that lived so long was well: the next is started at once."""


class OwnService:
    """The child process, and the link to it."""

    def __init__(self, config: StudioConfig) -> None:
        self._config = config
        self._port = _free_port()
        self._record = config.home / "service.pid"
        self._log_path = config.home / "logs" / "service.log"
        self._process: asyncio.subprocess.Process | None = None
        self._tending: asyncio.Task[None] | None = None
        self.link = Link(f"http://127.0.0.1:{self._port}", is_own=True)

    async def start(self) -> None:
        """Start it, and keep it running."""
        await asyncio.to_thread(self._end_orphan)
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        self._tending = asyncio.create_task(self._tend())
        await self.link.start()

    async def stop(self) -> None:
        """End it: what it draws may finish, for a few seconds."""
        await self.link.stop()
        if self._tending is not None:
            self._tending.cancel()
            await asyncio.gather(self._tending, return_exceptions=True)
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(self._process.wait(), _PATIENCE_SECONDS)
            except TimeoutError:
                await asyncio.to_thread(_kill_tree, self._process.pid)
                await self._process.wait()
        self._record.unlink(missing_ok=True)

    async def _tend(self) -> None:
        pause_seconds = 0.0
        while True:
            await asyncio.sleep(pause_seconds)
            loop = asyncio.get_running_loop()
            started = loop.time()
            code = await self._run()
            pause_seconds = (
                0.0
                if loop.time() - started > _LONG_LIFE_SECONDS
                else min(max(2 * pause_seconds, 1.0), _LONGEST_PAUSE_SECONDS)
            )
            last = await asyncio.to_thread(_last_line, self._log_path)
            log.warning("the service ended with %s (%s); starting it again in %g s", code, last, pause_seconds)
            self.link.lost(last)

    async def _run(self) -> int:
        """One life of it; the exit code."""
        command = [
            sys.executable, "-m", "lithograph", "serve", "--host", "127.0.0.1", "--port", str(self._port),
            "--flavour", self._config.flavour, "--adapters", self._config.adapters_uri,
            "--grace-seconds", str(_GRACE_SECONDS),
        ]  # fmt: skip
        if self._config.adapters_endpoint_url is not None:
            command += ["--adapters-endpoint-url", self._config.adapters_endpoint_url]
        with self._log_path.open("ab") as stream:
            # A session of its own: Ctrl-C in the terminal is for the studio, which then ends it in order.
            self._process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True
            )
        await asyncio.to_thread(self._remember, self._process.pid)
        return await self._process.wait()

    def _remember(self, pid: int) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            write_atomically(self._record, f"{pid} {psutil.Process(pid).create_time()}\n".encode(), durable=False)

    def _end_orphan(self) -> None:
        """End the service of a studio that was killed and could not: it would keep its memory for ever."""
        with contextlib.suppress(FileNotFoundError, ValueError, psutil.NoSuchProcess):
            pid, created = self._record.read_text(encoding="utf-8").split()
            if abs(psutil.Process(int(pid)).create_time() - float(created)) < 1:
                log.warning("ending process %s: the service of a studio that was killed", pid)
                _kill_tree(int(pid))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _kill_tree(pid: int) -> None:
    try:
        top = psutil.Process(pid)
        processes = [top, *top.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _last_line(path: Path) -> str:
    lines = path.read_bytes()[-4096:].decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
