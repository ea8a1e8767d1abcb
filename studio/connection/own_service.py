"""The studio's own service: ``lithograph serve`` as a child process, restarted when it ends."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from pathlib import Path

import psutil

from longcat.model.flavour import DOWNLOAD_EVENT
from longcat.problem import Problem
from longcat.process.identity import is_process, started_after_boot
from longcat.process.parent import PARENT_OPTION
from longcat.process.port import free_port
from longcat.storage.atomic import write_atomically
from studio.config import StudioConfig
from studio.connection.service_connection import ConnectionState, ServiceConnection

log = logging.getLogger("lithograph.studio")

_GRACE_SECONDS = 5
_PATIENCE_SECONDS = 20
"""Time from SIGTERM to SIGKILL; longer than draining takes."""
_LONGEST_PAUSE_SECONDS = 30.0
_LONG_LIFE_SECONDS = 60.0
"""Lifetime after which a process counts as healthy; its successor then starts without delay."""

_DOWNLOAD_POLL_SECONDS = 2.0
_TAIL_BYTES = 4096


class OwnService:
    """The child process, and the connection to it."""

    def __init__(self, config: StudioConfig) -> None:
        self._config = config
        self._port = free_port()
        self._record = config.home / "service.pid"
        self._log_path = config.home / "logs" / "service.log"
        self._process: asyncio.subprocess.Process | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.connection = ServiceConnection(f"http://127.0.0.1:{self._port}", is_own=True)

    async def start(self) -> None:
        """Start the process, and restart it whenever it ends."""
        await asyncio.to_thread(self._end_orphan)
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        self._log_path.touch()
        self._tasks = [asyncio.create_task(self._supervise()), asyncio.create_task(self._watch_download())]
        await self.connection.start()

    async def stop(self) -> None:
        """Stop the process; running requests may finish, for a few seconds."""
        await self.connection.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(self._process.wait(), _PATIENCE_SECONDS)
            except TimeoutError:
                await asyncio.to_thread(_kill_tree, self._process.pid)
                await self._process.wait()
        self._record.unlink(missing_ok=True)

    async def _supervise(self) -> None:
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
            self.connection.begin(
                Problem(
                    code="own_service_ended",
                    template="the service ended with exit code {exit_code} and is started again: {cause}",
                    remedy_template="see {log}",
                    details={"exit_code": code, "cause": last, "log": str(self._log_path)},
                )
            )

    async def _run(self) -> int:
        """Run one process to its end and return its exit code."""
        command = [
            sys.executable, "-P", "-m", "lithograph", PARENT_OPTION, str(os.getpid()),
            "serve", "--host", "127.0.0.1", "--port", str(self._port),
            "--flavour", self._config.flavour, "--adapters", self._config.adapters_uri,
            "--grace-seconds", str(_GRACE_SECONDS),
        ]  # fmt: skip
        if self._config.adapters_endpoint_url is not None:
            command += ["--adapters-endpoint-url", self._config.adapters_endpoint_url]
        with self._log_path.open("ab") as stream:
            # A session of its own: Ctrl-C in the terminal reaches the studio only, which then shuts the service down.
            self._process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True
            )
        await asyncio.to_thread(self._record_process, self._process.pid)
        return await self._process.wait()

    async def _watch_download(self) -> None:
        """Show the download of a model, which the process logs before it answers."""
        while True:
            await asyncio.sleep(_DOWNLOAD_POLL_SECONDS)
            if self.connection.state is not ConnectionState.STARTING:
                continue
            found = download_in(await asyncio.to_thread(_last_line, self._log_path))
            shown = self.connection.detail
            if self.connection.state is ConnectionState.STARTING and (  # as before the file was read
                found or (shown and shown.code == "model_downloading")
            ):
                self.connection.begin(found)

    def _record_process(self, pid: int) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            write_atomically(self._record, f"{pid} {started_after_boot(pid)}\n".encode(), durable=False)

    def _end_orphan(self) -> None:
        """Kill the service left by a studio that was killed; it would hold its memory forever."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            pid, started = self._record.read_text(encoding="utf-8").split()
            if is_process(int(pid), float(started)):
                log.warning("ending process %s: the service of a studio that was killed", pid)
                _kill_tree(int(pid))


def download_in(line: str) -> Problem | None:
    """Return the progress of a download from a line of the service's log; None if the line is about something else."""
    try:
        event = json.loads(line)
        if event["event"] != DOWNLOAD_EVENT:
            return None
        done, total = (_size(event[name]) for name in ("done_bytes", "total_bytes"))
    except (ValueError, KeyError, TypeError):
        return None
    return Problem(
        code="model_downloading",
        template="{model} is being downloaded: {done} of {total}",
        details={"model": event["model"], "done": done, "total": total},
    )


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.0f} MB"


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
    with path.open("rb") as stream:
        size_bytes = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size_bytes - _TAIL_BYTES))
        lines = stream.read().decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
