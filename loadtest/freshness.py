"""Time until a new adapter version is served: from the write of its ``latest`` to the first picture made with it.

While a light load runs, new versions of one adapter are published, each by ``lithograph adapters import``. Small one-step
requests name that adapter without a version, one after the other; a reply's ``X-Adapters`` names the version it used. The
clock starts when ``latest`` is written, the last of a publication: on a file system at the file's time; on S3 at the last
poll that still found the old version, so one poll too early at most. Publishing shares the cores with the service.
Exit code 1 if a request failed or a version never came.
"""

import argparse
import asyncio
import re
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from loadtest.contestants.contestants import add_service_options, service_on, settings
from loadtest.servers import ROOT, running
from loadtest.traffic.adapters import PublishError, import_command, make_adapter, make_adapters, publish
from loadtest.traffic.figures import machine, median, percentile, report, table
from loadtest.traffic.latest import Latest, open_latest
from loadtest.traffic.requests import LoadClient, Reply, prompts
from loadtest.traffic.traffic import Mix

FRESH = "fresh"
_VERSION = re.compile(rf"\b{FRESH}@([0-9]+);")
_PATIENCE_SECONDS = 60.0
_BETWEEN_PROBES_SECONDS = 0.02
_LONGEST_PAUSE_SECONDS = 2.0
"""Random pause before a publication, so that it falls anywhere between two polls of storage by the service."""


@dataclass(kw_only=True)
class Seen:
    """The results of the requests."""

    first: dict[int, float] = field(default_factory=dict)
    """Time of a version's first picture, by ``time.time``, by version."""
    probes: list[Reply] = field(default_factory=list)
    load: list[Reply] = field(default_factory=list)
    is_over: bool = False
    """True once the load must stop."""


async def measure(
    url: str, mix: Mix, latest: Latest, commands: Sequence[Sequence[str]], *, rate: float
) -> tuple[Seen, list[float]]:
    """Publish one version after the other under load; return the seconds until each was served.

    ``rate`` is the load in requests a second. Raises ``PublishError`` (in a group).
    """
    seen, seconds = Seen(), []
    async with LoadClient(url) as client, asyncio.TaskGroup() as group:
        group.create_task(_load(client, mix, seen, rate))
        group.create_task(_probe(client, seen))
        pauses = np.random.default_rng(1).uniform(0, _LONGEST_PAUSE_SECONDS, len(commands))
        for command, pause in zip(commands, pauses, strict=True):
            await asyncio.sleep(pause)
            version = latest.version() + 1
            written = await _publish(command, latest, version)
            while version not in seen.first and time.time() < written + _PATIENCE_SECONDS:
                await asyncio.sleep(_BETWEEN_PROBES_SECONDS)
            seconds.append(seen.first.get(version, float("inf")) - written)
            print(f"version {version} after {seconds[-1]:.3f} s", file=sys.stderr, flush=True)
        seen.is_over = True
    return seen, seconds


async def _publish(command: Sequence[str], latest: Latest, version: int) -> float:
    waiting = asyncio.create_task(latest.written(version))
    pipe = asyncio.subprocess.PIPE
    publisher = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=pipe, stderr=pipe)
    _, complaint = await publisher.communicate()
    if publisher.returncode:
        waiting.cancel()
        raise PublishError(complaint.decode(errors="replace"))
    return await waiting


async def _probe(client: LoadClient, seen: Seen) -> None:
    """Request the cheapest possible picture repeatedly."""
    small = Mix(guidance_scale=1.0, size_px=64)
    while not seen.is_over:
        reply = await client.draw(small.drawing("a red apple", seed=len(seen.probes), steps=1, adapter=FRESH))
        seen.probes.append(reply)
        if match := _VERSION.search(reply.headers.get("X-Adapters", "")):
            seen.first.setdefault(int(match[1]), time.time())
        await asyncio.sleep(_BETWEEN_PROBES_SECONDS)


async def _load(client: LoadClient, mix: Mix, seen: Seen, rate: float) -> None:
    """Send requests with the other adapters, at Poisson arrivals."""
    random, texts = np.random.default_rng(0), prompts(0)

    async def ask(number: int, texts: Iterator[str]) -> None:
        steps = mix.steps[number % len(mix.steps)]
        adapter = mix.adapters[number % len(mix.adapters)] if mix.adapters else None
        seen.load.append(await client.draw(mix.drawing(next(texts), seed=number, steps=steps, adapter=adapter)))

    number = 0
    async with asyncio.TaskGroup() as group:
        while not seen.is_over:
            await asyncio.sleep(float(random.exponential(1 / rate)))
            group.create_task(ask(number, texts))
            number += 1


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_service_options(parser, adapters=2)
    parser.add_argument("--versions", type=int, default=20)
    parser.add_argument("--rate", type=float, default=0.5, help="load in requests a second")
    parser.add_argument("--storage", help="file:///... or s3://bucket/prefix; a temporary directory if absent")
    parser.add_argument("--endpoint-url", help="endpoint of an S3 store other than AWS")
    arguments = parser.parse_args()
    about = machine()
    with tempfile.TemporaryDirectory(prefix="loadtest-") as scratch:
        folder = Path(scratch)
        # A prefix of its own, so that a run does not find another run's adapters.
        storage = f"{arguments.storage or (folder / 'storage').as_uri()}/{uuid.uuid4().hex}"
        endpoint_url = arguments.endpoint_url
        files = make_adapters(folder / "files", arguments.adapters, targets=arguments.targets)
        commands = []
        for number in range(arguments.versions + 1):
            file = folder / f"{FRESH}-{number}.safetensors"
            make_adapter(file, seed=1000 + number, targets=arguments.targets)
            commands.append(import_command(file, FRESH, storage=storage, endpoint_url=endpoint_url))
        publish({**files, FRESH: folder / f"{FRESH}-0.safetensors"}, storage=storage, endpoint_url=endpoint_url)
        recipe = service_on(storage, arguments, required=(*files, FRESH), endpoint_url=endpoint_url)
        latest = open_latest(storage, FRESH, endpoint_url=endpoint_url)
        mix = Mix(adapters=tuple(files))
        with running([recipe], folder) as servers, servers[recipe.name].awake():
            seen, seconds = asyncio.run(
                measure(servers[recipe.name].url, mix, latest, commands[1:], rate=arguments.rate)
            )
    failed = [reply for reply in (*seen.probes, *seen.load) if reply.has_failed]
    summary = {
        "versions": float(len(seconds)),
        "median_seconds": median(seconds),
        "p95_seconds": percentile(seconds, 95),
        "worst_seconds": max(seconds),
        "load_requests": float(len(seen.load)),
        "probe_requests": float(len(seen.probes)),
        "failed_requests": float(len(failed)),
    }
    content: dict[str, Any] = {"summary": summary, "seconds": seconds, "failed": [reply.problem for reply in failed]}
    report(
        {"measured": "freshness", "settings": settings(arguments), "machine": about, **content},
        [table({storage.partition(":")[0]: summary})],
    )
    sys.exit(bool(failed) or summary["worst_seconds"] == float("inf"))


if __name__ == "__main__":
    main()
