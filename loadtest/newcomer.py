"""Time to the first step of a request while four others run, in step times. The service alone.

Four long requests stream their progress. Once all are on their way, a fifth arrives, at evenly spread moments between two
steps; its first ``progress`` event must come within two step times. A step time is the median gap between one request's
events, over the last steps of all four before the fifth arrived; the one after its arrival, with five in the forward, is
reported too, with the fifth request's time in the queue and for its prompt by its own timings. Exit code 1 if a request
failed.
"""

import argparse
import asyncio
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx

from loadtest.contestants.contestants import add_service_options, our_service, settings
from loadtest.servers import ServerProcess, running
from loadtest.traffic.adapters import make_adapters
from loadtest.traffic.figures import Figures, machine, median, percentile, report, table
from loadtest.traffic.requests import ImageRequest, LoadClient, StreamError, prompts
from loadtest.traffic.traffic import Mix

RUNNERS = 4
_RUNNERS_STEPS = 64
_NEWCOMERS_STEPS = 8
_STEPS_BEFORE = 12
"""Steps of every running request before the newcomer arrives; the last half of them gives the step time."""


def measure(server: ServerProcess, mix: Mix, prompts: Iterator[str], *, repeats: int) -> dict[str, Any]:
    """Measure one arrival after the other, each among four new requests."""
    rounds: list[Figures] = []
    failed: list[str] = []
    with server.awake():
        for number in range(repeats + 1):
            try:
                rounds.append(
                    asyncio.run(
                        _arrive(server.url, _drawings(mix, prompts, seed=10_000 * number), phase=number / repeats % 1)
                    )
                )
            except* (StreamError, httpx.HTTPError) as errors:
                failed += [str(error) for error in errors.exceptions]
    del rounds[:1]  # warm-up
    step_times = [figures["first_step_in_step_times"] for figures in rounds]
    summary = {
        "first_step_in_step_times_median": median(step_times),
        "first_step_in_step_times_p95": percentile(step_times, 95),
        "first_step_in_step_times_worst": max(step_times, default=math.nan),
        **{
            name: median([figures[name] for figures in rounds])
            for name in ("step_seconds_of_four", "step_seconds_of_five", "queue_seconds", "text_seconds")
        },
    }
    return {"summary": summary, "rounds": rounds, "failed": failed}


def _drawings(mix: Mix, prompts: Iterator[str], *, seed: int) -> list[ImageRequest]:
    """Return four running requests and, last, the newcomer, each with its own adapter if there are enough."""
    names = [mix.adapters[i % len(mix.adapters)] if mix.adapters else None for i in range(RUNNERS + 1)]
    counts = [_RUNNERS_STEPS] * RUNNERS + [_NEWCOMERS_STEPS]
    return [
        mix.drawing(next(prompts), seed=seed + i, steps=steps, adapter=name)
        for i, (name, steps) in enumerate(zip(names, counts, strict=True))
    ]


async def _arrive(url: str, drawings: Sequence[ImageRequest], *, phase: float) -> Figures:
    """Run four requests and a newcomer. ``phase``: fraction of a step, 0 to 1, between an event and the newcomer."""
    async with LoadClient(url) as client:
        progress: list[list[float]] = [[] for _ in drawings]
        timings: list[Figures] = [{} for _ in drawings]

        async def follow(number: int) -> None:
            async for event in client.stream(drawings[number]):
                if event.name == "progress" and event.data["step"] > 0:
                    progress[number].append(event.at_seconds)
                elif event.name == "result":
                    timings[number] = event.data["timings"]

        async with asyncio.TaskGroup() as group:  # one failure ends all
            for number in range(RUNNERS):
                group.create_task(follow(number))
            while min(len(times) for times in progress[:RUNNERS]) < _STEPS_BEFORE:
                await asyncio.sleep(0.001)
            before = [times[-_STEPS_BEFORE // 2 :] for times in progress[:RUNNERS]]
            await asyncio.sleep(phase * median(_gaps(before)))
            arrival = time.monotonic()
            await follow(RUNNERS)
    newcomers = progress[RUNNERS]
    during = [[at for at in times if newcomers[0] <= at <= newcomers[-1]] for times in progress[:RUNNERS]]
    step_seconds = median(_gaps(before))
    return {
        "step_seconds_of_four": step_seconds,
        "step_seconds_of_five": median(_gaps(during)),
        "first_step_seconds": newcomers[0] - arrival,
        "first_step_in_step_times": (newcomers[0] - arrival) / step_seconds,
        "queue_seconds": timings[RUNNERS]["queue_seconds"],
        "text_seconds": timings[RUNNERS]["text_seconds"],
    }


def _gaps(progress: Sequence[Sequence[float]]) -> list[float]:
    return [later - earlier for times in progress for earlier, later in pairwise(times)]


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_service_options(parser, adapters=5)
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args()
    about = machine()
    with tempfile.TemporaryDirectory(prefix="loadtest-") as scratch:
        files = make_adapters(Path(scratch, "files"), arguments.adapters, targets=arguments.targets)
        recipe = our_service(arguments, Path(scratch), files)
        with running([recipe], Path(scratch)) as servers:
            mix = Mix(adapters=tuple(files))
            measured = measure(servers[recipe.name], mix, prompts(arguments.seed), repeats=arguments.repeats)
    report(
        {"measured": "newcomer", "settings": settings(arguments), "machine": about, **measured},
        [table({"newcomer": measured["summary"]})],
    )
    sys.exit(bool(measured["failed"]))


if __name__ == "__main__":
    main()
