"""Scenarios in which adapter storage is missing, forbidden, or holds invalid versions."""

import asyncio
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from loadtest.chaos.load import RIGHT
from loadtest.chaos.outcome import ScenarioOutcome
from loadtest.chaos.s3 import BUCKET, CREDENTIALS, Proxy, Way, s3_server
from loadtest.chaos.server import ChaosError, ChaosServer, running, with_environment
from loadtest.chaos.stage import ADAPTERS, Stage
from loadtest.servers import ROOT
from loadtest.traffic.adapters import import_command

_UNLOADED = f"style-{ADAPTERS - 1}"
"""Adapters that are published but not used by the load."""
_FOLLOW_SECONDS = 90.0
"""Time within which a server must notice a change of the storage."""


async def directory_gone(stage: Stage, server: ChaosServer) -> list[ScenarioOutcome]:
    """Move the directory away and back: adapters in memory keep serving, and nothing is lost afterwards."""
    outcome = ScenarioOutcome(name=f"directory gone, {stage.hold_seconds:.0f} s")
    away = stage.storage.with_name("away")
    await stage.load.ask_all(server.url)
    async with stage.load.on(lambda: server.url):
        await asyncio.sleep(1)
        stage.storage.rename(away)
        try:
            await asyncio.sleep(stage.hold_seconds)
        finally:
            away.rename(stage.storage)
        outcome.recoveries.append(await _seconds_until_served(server, _UNLOADED))
    _check_independence(stage, outcome)
    stage.check_published(server, outcome)
    return [stage.finish(outcome, server)]


async def s3_gone(stage: Stage, server: ChaosServer) -> list[ScenarioOutcome]:
    """Cut, silence and forbid the connections to an S3 server."""
    ways: tuple[Way, ...] = ("cut", "silent", "forbidden")
    async with s3_server(stage.folder / "seaweed") as proxy:
        storage, endpoint = f"s3://{BUCKET}/chaos", f"http://127.0.0.1:{proxy.port}"
        for number in range(ADAPTERS):
            await _publish(stage.folder / "files" / f"style-{number}.safetensors", f"style-{number}", storage, endpoint)
        options = [*stage.options(storage), "--adapters-endpoint-url", endpoint]
        async with running(ChaosServer(stage.folder, options, environment=CREDENTIALS)) as remote:
            outcomes = [await _s3_way(stage, remote, proxy, way) for way in ways]
        server.orphans += remote.orphans
        return outcomes


async def _s3_way(stage: Stage, remote: ChaosServer, proxy: Proxy, way: Way) -> ScenarioOutcome:
    outcome = ScenarioOutcome(name=f"S3 {way}, {stage.hold_seconds:.0f} s")
    await stage.load.ask_all(remote.url)
    async with stage.load.on(lambda: remote.url):
        proxy.set(way)
        try:
            await asyncio.sleep(stage.hold_seconds)
        finally:
            proxy.set("open")
        outcome.recoveries.append(await _seconds_until_served(remote, _UNLOADED))
    _check_independence(stage, outcome)
    return stage.finish(outcome, remote)


async def broken_versions(stage: Stage, server: ChaosServer) -> list[ScenarioOutcome]:
    """Store invalid versions, which must affect neither other adapters nor the version before."""
    outcome = ScenarioOutcome(name="broken versions")
    good = stage.storage / "style-0" / "1"
    broken: dict[str, Callable[[Path], object]] = {
        "half": lambda to: (to / "manifest.json").unlink(),
        "no-weights": lambda to: (to / "adapter.safetensors").unlink(),
        "corrupt": lambda to: _flip_byte(to / "adapter.safetensors"),
        "cut-weights": lambda to: _cut(to / "adapter.safetensors"),
        "cut-manifest": lambda to: _cut(to / "manifest.json"),
        "empty-manifest": lambda to: (to / "manifest.json").write_bytes(b""),
        "deep-manifest": lambda to: (to / "manifest.json").write_bytes(b"[" * 200_000),
        "of-another": lambda _: None,
    }
    async with stage.load.on(lambda: server.url):
        for number, (name, spoil) in enumerate(broken.items(), start=1):
            new, of_known = stage.storage / name, stage.storage / "style-1" / f"{number + 1}"
            shutil.copytree(good, new / "1")
            shutil.copytree(good, of_known)
            for version in (new / "1", of_known):
                spoil(version)
            (new / "latest").write_bytes(b"1\n")
            (stage.storage / "style-1" / "latest").write_bytes(f"{number + 1}\n".encode())
            await asyncio.sleep(1.5)
        for name, content in {"nonsense": b"one", "long": b"9" * 300, "binary": b"\xff\x00"}.items():
            (stage.storage / name).mkdir()
            (stage.storage / name / "latest").write_bytes(content)
        (stage.storage / "loop").mkdir()
        (stage.storage / "loop" / "latest").symlink_to("latest")
        (stage.storage / "a b").mkdir()
        (stage.storage / "a b" / "latest").write_bytes(b"1\n")
        outcome.recoveries.append(await _seconds_until_served(server, _UNLOADED))
        await asyncio.to_thread(stage.publish_one)
    (stage.storage / "style-1" / "latest").write_bytes(b"1\n")
    for name in (*broken, "nonsense", "long", "binary", "loop"):
        if (status := await _status(server, name)) in (200, 500, None):
            outcome.faults.append(f"{name} is answered with {status}")
    stage.check_published(server, outcome)
    return [stage.finish(outcome, server)]


def _check_independence(stage: Stage, outcome: ScenarioOutcome) -> None:
    if unserved := {kind: count for kind, count in stage.load.counts.items() if kind != RIGHT}:
        outcome.faults.append(f"adapters in memory need no storage: {unserved}")


async def _seconds_until_served(server: ChaosServer, name: str) -> float:
    """Return the seconds until an adapter is used that was not loaded before; infinity if that takes too long."""
    begin = time.monotonic()
    while time.monotonic() < begin + _FOLLOW_SECONDS:
        if await _status(server, name) == 200:
            return time.monotonic() - begin
        await asyncio.sleep(0.2)
    return float("inf")


async def _status(server: ChaosServer, name: str) -> int | None:
    """Return the status of a request for an adapter; None if there was none."""
    body = {"prompt": "a cat", "seed": 1, "steps": 1, "adapters": [{"name": name}]}
    try:
        async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
            return (await http.post(f"{server.url}/generate", json=body)).status_code
    except httpx.HTTPError:
        return None


async def _publish(file: Path, name: str, storage: str, endpoint: str) -> None:
    command = with_environment(CREDENTIALS, import_command(file, name, storage=storage, endpoint_url=endpoint))
    done = await asyncio.to_thread(subprocess.run, command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ChaosError(f"publishing {name} failed: {done.stderr}")


def _flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
