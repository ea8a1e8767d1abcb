"""A wall clock that jumps under a running server, and under a training that publishes to its storage.

libfaketime replaces only the calls that read the wall clock, not the monotonic one: the same effect as ``date --set``.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx

from loadtest.chaos.load import RIGHT
from loadtest.chaos.outcome import ScenarioOutcome
from loadtest.chaos.server import ChaosServer, running, with_environment
from loadtest.chaos.stage import Stage
from loadtest.servers import ROOT

_LIBRARIES = ("/usr/lib/*/faketime/libfaketimeMT.so.1", "/opt/homebrew/lib/faketime/libfaketimeMT.1.dylib")
_JUMPS = {"+0": "right", "+5h": "5 h ahead", "-5h": "5 h behind", "+40d": "40 days ahead"}
_JOB_SECONDS = 3600
"""Lifetime of a finished job: longer than the scenario, shorter than a jump."""
_TRAINING_STEPS = 60
_TRAINING_SECONDS = 300.0
"""Time limit, far above what the training needs; a deadline on the wall clock would wait for hours."""


async def clock_jumps(stage: Stage, server: ChaosServer) -> list[ScenarioOutcome]:
    """Set the clock of a server and of a training ahead and back, while both work."""
    outcome = ScenarioOutcome(name="clock jumps by 5 h and 40 days")
    library = next((str(found) for pattern in _LIBRARIES for found in Path("/").glob(pattern[1:])), None)
    if library is None:
        outcome.skipped = "needs libfaketime"
        return [outcome]
    jump = stage.folder / "clock"
    jump.write_text("+0")
    clock = {
        "LD_PRELOAD": library, "FAKETIME_TIMESTAMP_FILE": str(jump), "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }  # fmt: skip
    async with running(
        ChaosServer(stage.folder, [*stage.options(), "--job-ttl-seconds", str(_JOB_SECONDS)], environment=clock)
    ) as fake:
        pids = {role: process.pid for role, process in fake.processes().items()}
        job = await _submit_job(fake)
        with _training(stage, clock) as training:
            async with stage.load.on(lambda: fake.url):
                for offset in (*_JUMPS, "+0"):
                    jump.write_text(offset)
                    begin = time.monotonic()
                    outcome.recoveries.append(await fake.recovery_seconds(stage.load, begin))
                    await asyncio.to_thread(stage.publish_one)
                    await asyncio.sleep(stage.hold_seconds / 2)
                outcome.faults += await asyncio.to_thread(_faults_of, training, stage.folder / "training")
        outcome.notes["jumps"] = ", ".join(_JUMPS.values())
        if (status := await _status_of(fake, job)) != 200:
            outcome.faults.append(f"a job of {_JOB_SECONDS} s expired with the clock: {status}")
        if pids != {role: process.pid for role, process in fake.processes().items()}:
            outcome.faults.append("a process ended")
        stage.check_published(fake, outcome)
    server.orphans += fake.orphans
    if unserved := {kind: count for kind, count in stage.load.counts.items() if kind != RIGHT}:
        outcome.faults.append(f"requests noticed the clock: {unserved}")
    return [stage.finish(outcome, server)]


async def _submit_job(server: ChaosServer) -> str:
    """Submit an asynchronous request; return the path of the job."""
    body = {"prompt": "a cat", "seed": 1, "steps": 1, "async": True}
    async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
        reply = await http.post(f"{server.url}/generate", json=body)
        reply.raise_for_status()
        return str(reply.headers["location"])


async def _status_of(server: ChaosServer, path: str) -> int:
    async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
        return (await http.get(f"{server.url}{path}")).status_code


@contextmanager
def _training(stage: Stage, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Train the embedded model on two of the repository's pictures, and publish the adapter."""
    options = {
        "model-flavour": "embedded", "instance-data-dir": ROOT / "examples" / "ink" / "pictures", "resolution": 128,
        "max-train-steps": _TRAINING_STEPS, "checkpointing-steps": _TRAINING_STEPS // 4, "adapter-name": "of-the-clock",
        "output-dir": stage.folder / "training", "cache-dir": stage.folder / "cache", "publish-to": stage.storage.as_uri(),
    }  # fmt: skip
    arguments = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "lithograph", "train", "--validation-disable", *arguments]
    with (stage.folder / "training.log").open("wb") as log:
        process = subprocess.Popen(with_environment(environment, command), cwd=ROOT, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _faults_of(training: subprocess.Popen[bytes], output: Path) -> list[str]:
    try:
        code = training.wait(_TRAINING_SECONDS)
    except subprocess.TimeoutExpired:
        return [f"the training is not over after {_TRAINING_SECONDS:.0f} s"]
    log = (output.parent / "training.log").read_text(errors="replace")[-2000:]
    if code:
        return [f"the training ended with {code}: {log}"]
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    slowest = max(line["step_seconds"] for line in lines)
    if len(lines) != _TRAINING_STEPS or not 0 < slowest < _TRAINING_SECONDS:
        return [f"{len(lines)} steps, the slowest of {slowest} s"]
    return []
