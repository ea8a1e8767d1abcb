"""Thousands of adapter swaps through few slots: a test that memory stays flat and pictures stay the same.

One-step requests name 50 adapters in a fixed cycle; with fewer slots than adapters and the least recently used one evicted,
every request needs one that is not loaded. Resident memory of the service's processes is read after a warm-up and at
intervals; pictures generated with some adapters before and after must be equal byte for byte. Exit code 1 if a request
failed or a picture differs.
"""

import argparse
import asyncio
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtest.contestants.contestants import add_service_options, our_service, settings
from loadtest.servers import ServerProcess, running
from loadtest.traffic.adapters import make_adapters
from loadtest.traffic.figures import Figures, machine, report, table
from loadtest.traffic.requests import ImageRequest, LoadClient, Reply
from loadtest.traffic.traffic import Mix

_CLIENTS = 4
_SAMPLES = 20
"""Readings of memory after the first."""
_REFERENCES = 5
_PASSES_TO_WARM_UP = 4
_MIB = 1024 * 1024


async def swap(client: LoadClient, names: Sequence[str], *, first: int, count: int) -> list[Reply]:
    """Generate ``count`` small pictures, each with the next adapter of the cycle; return the failed replies."""
    small = Mix(guidance_scale=1.0, size_px=64)
    numbers = iter(range(first, first + count))
    failed: list[Reply] = []

    async def ask() -> None:
        for number in numbers:
            drawing = small.drawing("a red apple", seed=number, steps=1, adapter=names[number % len(names)])
            reply = await client.draw(drawing)
            if reply.has_failed:
                failed.append(reply)

    await asyncio.gather(*(ask() for _ in range(_CLIENTS)))
    return failed


@dataclass(frozen=True, kw_only=True)
class Swapped:
    """The results of the swaps."""

    failed: list[Reply]
    memory: list[Figures]
    """Readings after the warm-up and at intervals."""
    seconds: float
    slot_loads: float
    """Adapters copied into a slot meanwhile, as the service counts them."""
    pictures_that_differ: int

    def summary(self) -> Figures:
        """Return the comparison of start and end."""
        first, last = self.memory[0], self.memory[-1]
        return {
            "requests": last["requests"],
            "slot_loads": self.slot_loads,
            "requests_per_second": last["requests"] / self.seconds,
            "start_mib": first["all_processes_mib"],
            "end_mib": last["all_processes_mib"],
            "engine_start_mib": first["largest_process_mib"],
            "engine_end_mib": last["largest_process_mib"],
            "failed_requests": float(len(self.failed)),
            "pictures_that_differ": float(self.pictures_that_differ),
        }


async def measure(server: ServerProcess, names: Sequence[str], *, requests: int) -> Swapped:
    """Warm up, generate the reference pictures, swap, and generate them again."""
    references = _references(names)
    async with LoadClient(server.url) as client:
        warm_up = _PASSES_TO_WARM_UP * len(names)
        failed = await swap(client, names, first=0, count=warm_up)
        before = [await client.draw(drawing) for drawing in references]
        memory = [_memory(server, 0)]
        loads, done, begin = await _slot_loads(client), 0, time.monotonic()
        for sample in range(1, _SAMPLES + 1):
            count = requests * sample // _SAMPLES - done
            failed += await swap(client, names, first=warm_up + done, count=count)
            done += count
            memory.append(_memory(server, done))
            print(", ".join(f"{name} {value:.0f}" for name, value in memory[-1].items()), file=sys.stderr, flush=True)
        seconds = time.monotonic() - begin
        loads = await _slot_loads(client) - loads
        after = [await client.draw(drawing) for drawing in references]
    failed += [reply for reply in (*before, *after) if reply.has_failed]
    differ = sum(old.content != new.content for old, new in zip(before, after, strict=True))
    return Swapped(failed=failed, memory=memory, seconds=seconds, slot_loads=loads, pictures_that_differ=differ)


async def _slot_loads(client: LoadClient) -> float:
    exposition = (await client.get("/metrics")).text
    return float(re.findall(r"^lithograph_adapter_slot_loads_total (\S+)$", exposition, re.MULTILINE)[0])


def _references(names: Sequence[str]) -> list[ImageRequest]:
    mix = Mix()
    some = names[:: max(1, len(names) // _REFERENCES)]
    return [mix.drawing("一个红苹果", seed=i, steps=4, adapter=name) for i, name in enumerate(some)]


def _memory(server: ServerProcess, requests: int) -> Figures:
    sizes = server.rss_bytes().values()
    return {
        "requests": float(requests),
        "all_processes_mib": sum(sizes) / _MIB,
        "largest_process_mib": max(sizes) / _MIB,
    }


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_service_options(parser, adapters=50)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--slots", type=int, default=4)
    arguments = parser.parse_args()
    about = machine()
    with tempfile.TemporaryDirectory(prefix="loadtest-") as scratch:
        files = make_adapters(Path(scratch, "files"), arguments.adapters, targets=arguments.targets)
        recipe = our_service(arguments, Path(scratch), files, slots=arguments.slots)
        with running([recipe], Path(scratch)) as servers, servers[recipe.name].awake():
            swapped = asyncio.run(measure(servers[recipe.name], list(files), requests=arguments.requests))
    summary = swapped.summary()
    report(
        {
            "measured": "swaps",
            "settings": settings(arguments),
            "machine": about,
            "summary": summary,
            "memory": swapped.memory,
            "failed": [reply.problem for reply in swapped.failed[:10]],
        },
        [table({recipe.name: summary})],
    )
    sys.exit(bool(swapped.failed or swapped.pictures_that_differ))


if __name__ == "__main__":
    main()
