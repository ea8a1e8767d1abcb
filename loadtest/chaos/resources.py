"""Scenarios in which disk, file descriptors or connections are exhausted."""

import asyncio
import contextlib
import os
import resource
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

from loadtest.chaos.load import RIGHT, answers
from loadtest.chaos.outcome import ScenarioOutcome
from loadtest.chaos.server import ChaosServer, running
from loadtest.chaos.stage import Stage

_DISK_MIB = 16
_DESCRIPTORS = 512
_OWN_DESCRIPTORS = 300
"""Descriptors that the campaign itself needs beside the half-open connections."""
_HALF_A_HEAD = b"POST /generate HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "
_HEALTH_SECONDS = 10.0
_LARGEST_LOG_BYTES = 5 * 2**20


async def disk_full(stage: Stage, server: ChaosServer) -> list[ScenarioOutcome]:
    """Fill the disk of the temporary directory under load, for a while."""
    outcome = ScenarioOutcome(name=f"temporary disk full, {stage.hold_seconds:.0f} s")
    with _small_disk(stage.folder / "disk") as disk:
        if disk is None:
            outcome.skipped = "mounting a small disk needs root"
            return [outcome]
        async with running(ChaosServer(stage.folder, stage.options(), environment={"TMPDIR": str(disk)})) as small:
            pids = {role: process.pid for role, process in small.processes().items()}
            async with stage.load.on(lambda: small.url):
                await asyncio.sleep(2)
                _fill(disk / "filler")
                await asyncio.sleep(stage.hold_seconds)
                if await answers(small.url, "/metrics", seconds=_HEALTH_SECONDS) is None:
                    outcome.faults.append("/metrics does not answer")
                (disk / "filler").unlink()
                outcome.recoveries.append(await small.recovery_seconds(stage.load, time.monotonic()))
            if pids != {role: process.pid for role, process in small.processes().items()}:
                outcome.faults.append("a process ended")
        server.orphans += small.orphans
    return [stage.finish(outcome, server)]


async def descriptors_exhausted(stage: Stage, server: ChaosServer) -> list[ScenarioOutcome]:
    """Open more connections than a server has file descriptors, for a while."""
    outcome = ScenarioOutcome(name=f"{_DESCRIPTORS} file descriptors, {stage.hold_seconds:.0f} s")
    async with running(ChaosServer(stage.folder, stage.options(), descriptors=_DESCRIPTORS)) as poor:
        size = poor.log_path.stat().st_size
        async with stage.load.on(lambda: poor.url):
            async with _connections(poor.port, 2 * _DESCRIPTORS, b""):
                await asyncio.sleep(stage.hold_seconds)
            outcome.recoveries.append(await poor.recovery_seconds(stage.load, time.monotonic()))
        if (grown := poor.log_path.stat().st_size - size) > _LARGEST_LOG_BYTES:
            outcome.faults.append(f"the log grew by {grown} bytes")
        if poor.exit_codes:
            outcome.faults.append(f"the server ended: {poor.exit_codes}")
    server.orphans += poor.orphans
    return [stage.finish(outcome, server)]


async def half_open(stage: Stage, server: ChaosServer) -> list[ScenarioOutcome]:
    """Hold thousands of connections that never finish their first request."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    count = min(stage.connections, hard - _OWN_DESCRIPTORS)
    outcome = ScenarioOutcome(name=f"{count} half-open connections, {stage.hold_seconds:.0f} s")
    try:
        async with running(ChaosServer(stage.folder, stage.options())) as open_:
            before, slowest = open_.resident_bytes("http"), 0.0
            async with stage.load.on(lambda: open_.url), _connections(open_.port, count, _HALF_A_HEAD) as made:
                end = time.monotonic() + stage.hold_seconds
                while time.monotonic() < end:
                    seconds = await answers(open_.url, "/healthz", seconds=_HEALTH_SECONDS)
                    slowest = max(slowest, _HEALTH_SECONDS if seconds is None else seconds)
                    await asyncio.sleep(0.5)
                outcome.notes |= {
                    "opened": len(made),
                    "/healthz at most, s": round(slowest, 2),
                    "MiB grown": (open_.resident_bytes("http") - before) >> 20,
                }
            begin = time.monotonic()
            outcome.recoveries.append(await open_.recovery_seconds(stage.load, begin))
            if slowest >= _HEALTH_SECONDS:
                outcome.faults.append(f"/healthz took {slowest:.0f} s")
        server.orphans += open_.orphans
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if unserved := {kind: number for kind, number in stage.load.counts.items() if kind != RIGHT}:
        outcome.notes["not served"] = unserved
    return [stage.finish(outcome, server)]


@asynccontextmanager
async def _connections(port: int, count: int, first: bytes) -> AsyncIterator[list[asyncio.StreamWriter]]:
    """Hold connections on which the first bytes of a request are sent, or none; yield them."""
    writers: list[asyncio.StreamWriter] = []
    gate = asyncio.Semaphore(50)

    async def connect() -> None:
        async with gate:
            with suppress(OSError, TimeoutError):
                async with asyncio.timeout(5):
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(first)
                writers.append(writer)

    await asyncio.gather(*(connect() for _ in range(count)))
    try:
        yield writers
    finally:
        for writer in writers:
            writer.transport.abort()


@contextmanager
def _small_disk(folder: Path) -> Iterator[Path | None]:
    """Mount a small file system in memory; None if that is not permitted."""
    mount, umount = shutil.which("mount"), shutil.which("umount")
    folder.mkdir()
    options = f"size={_DISK_MIB}m,mode=700"
    if os.geteuid() or mount is None or umount is None:
        yield None
        return
    subprocess.run([mount, "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run([umount, "--lazy", str(folder)], check=True)


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while stream.write(bytes(4096)):
            pass
