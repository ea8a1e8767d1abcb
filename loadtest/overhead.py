"""Overhead of an idle service: a request's time without text encoding, denoising and decoding.

One request at a time on a kept connection, each with its own prompt. The client's wall time, less the phases ``text``,
``denoise`` and ``decode`` of the reply's ``Server-Timing``, is what HTTP, queues, admission, encoding the PNG and this
client take. Exit code 1 if a request failed.
"""

import argparse
import asyncio
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from loadtest.contestants.contestants import add_service_options, our_service, settings
from loadtest.servers import ServerProcess, running
from loadtest.traffic.adapters import make_adapters
from loadtest.traffic.figures import Figures, machine, median, percentile, report, table
from loadtest.traffic.requests import ImageRequest, LoadClient, Reply, prompts
from loadtest.traffic.traffic import Mix

_MODEL_PHASES = ("text", "denoise", "decode")
_PHASE = re.compile(r"([a-z_]+);dur=([0-9.]+)")
_WARM_UP_REQUESTS = 10


def measure(server: ServerProcess, drawings: Sequence[ImageRequest]) -> tuple[list[Reply], dict[str, Figures]]:
    """Return the replies, and the milliseconds of each part: median, p95 and maximum."""

    async def run() -> list[Reply]:
        async with LoadClient(server.url) as client:
            return [await client.draw(drawing) for drawing in drawings]

    with server.awake():
        replies = asyncio.run(run())[_WARM_UP_REQUESTS:]
    parts: dict[str, list[float]] = {}
    for reply in replies:
        if reply.has_failed:
            continue
        phases = {name: float(value) for name, value in _PHASE.findall(reply.headers["Server-Timing"])}
        model = sum(phases[name] for name in _MODEL_PHASES)
        wall = reply.seconds * 1000
        for name, value in {"wall": wall, "model": model, "overhead": wall - model, **phases}.items():
            parts.setdefault(name, []).append(value)
    return replies, {
        name: {"median_ms": median(values), "p95_ms": percentile(values, 95), "worst_ms": max(values)}
        for name, values in parts.items()
    }


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_service_options(parser, adapters=1)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--steps", type=int, default=4)
    arguments = parser.parse_args()
    about = machine()
    with tempfile.TemporaryDirectory(prefix="loadtest-") as scratch:
        files = make_adapters(Path(scratch, "files"), arguments.adapters, targets=arguments.targets)
        recipe = our_service(arguments, Path(scratch), files)
        mix, texts = Mix(), prompts(arguments.seed)
        drawings = [
            mix.drawing(next(texts), seed=i, steps=arguments.steps, adapter=next(iter(files), None))
            for i in range(_WARM_UP_REQUESTS + arguments.requests)
        ]
        with running([recipe], Path(scratch)) as servers:
            replies, parts = measure(servers[recipe.name], drawings)
    failed = [reply.problem for reply in replies if reply.has_failed]
    report(
        {
            "measured": "overhead",
            "settings": settings(arguments),
            "machine": about,
            "milliseconds": parts,
            "failed": failed,
        },
        [table(parts)] if parts else [],
    )
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
