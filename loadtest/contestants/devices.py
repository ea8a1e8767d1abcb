"""Throughput of two engines, one core each, beside that of one: closed loop, in interleaved rounds.

Both servers are the service, with ``--devices cpu`` and ``--devices cpu,cpu``. An engine has one thread, and is bound to a
core of its own; the other processes run anywhere. ``per_core`` is pictures a second of CPU time of the busiest engine: how
the work is divided and what it costs, without what other programs take from the cores. All pictures are compared byte by
byte. Exit code 1 if a request failed or a picture differs.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil

from loadtest.servers import EMBEDDED, ServerProcess, running, service
from loadtest.traffic.figures import Figures, machine, medians, ratios, report, table
from loadtest.traffic.requests import ImageRequest, prompts
from loadtest.traffic.traffic import Mix, Result, closed_loop

ONE, TWO = "one engine", "two engines"
_SERVERS = {ONE: "cpu", TWO: "cpu,cpu"}
_POLL_SECONDS = 0.1


def measure(server: ServerProcess, work: Sequence[Sequence[ImageRequest]]) -> tuple[Result, Figures]:
    """Load a server, and return the result with its figures."""
    with server.awake():
        wait_for_engines(server)
        engines = server.engines()
        before = [_cpu_seconds(engine) for engine in engines]
        result = closed_loop(server, work)
    used = [_cpu_seconds(engine) - earlier for engine, earlier in zip(engines, before, strict=True)]
    return result, result.figures() | {
        "per_core": len(result.pictures) / max(used),
        "share_of_busiest": max(used) / sum(used),
    }


def wait_for_engines(server: ServerProcess) -> None:
    """Wait until all engines are ready, and bind each, with all its threads, to a core of its own."""
    while any(device["status"] != "ready" for device in _info(server)["devices"]):
        time.sleep(_POLL_SECONDS)
    cores, engines = sorted(os.sched_getaffinity(0)), server.engines()
    if len(cores) < len(engines):
        sys.exit(f"{len(engines)} engines need {len(engines)} cores, and there are {len(cores)}")
    for engine, core in zip(engines, cores, strict=False):
        for thread in engine.threads():
            os.sched_setaffinity(thread.id, {core})


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(EMBEDDED), help="a model's directory")
    parser.add_argument("--dtype", default="float32", help="float32 or bfloat16")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--pictures", type=int, default=3, help="a client and round")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--size", type=int, default=Mix.size_px, help="in px")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    about = machine()
    mix, texts = Mix(steps=(arguments.steps,), size_px=arguments.size), prompts(arguments.seed)
    numbers = [1, *[arguments.pictures] * arguments.rounds]
    clients = partial(mix.for_clients, texts, clients=arguments.clients)
    works = [clients(each=each, seed=arguments.seed + i) for i, each in enumerate(numbers)]
    recipes = [
        replace(
            service(name, dtype=arguments.dtype, model=arguments.model, options=["--devices", devices]),
            environment=("OMP_NUM_THREADS=1",),
        )
        for name, devices in _SERVERS.items()
    ]
    figures: dict[str, list[Figures]] = {name: [] for name in _SERVERS}
    failed = different = 0
    with tempfile.TemporaryDirectory(prefix="loadtest-") as scratch, running(recipes, Path(scratch)) as servers:
        for number, work in enumerate(works):
            results = {}
            for name, server in servers.items():
                results[name], found = measure(server, work)
                failed += len(results[name].failed)
                if number:  # the first is to warm up
                    figures[name].append(found)
                    shown = ", ".join(f"{key} {value:.4g}" for key, value in found.items())
                    print(f"round {number} of {arguments.rounds}, {name}: {shown}", file=sys.stderr, flush=True)
            different += sum(results[TWO].pictures.get(r) != content for r, content in results[ONE].pictures.items())
    rounds = ratios(figures[TWO], figures[ONE])
    content = {
        "measured": "two engines beside one",
        "settings": vars(arguments),
        "machine": about,
        "servers": {name: {"median": medians(given), "rounds": given} for name, given in figures.items()},
        "ratios": {"median": medians(rounds), "rounds": rounds},
        "failed": failed,
        "different_pictures": different,
    }
    tables = [table({name: medians(given) for name, given in figures.items()})]
    report(content, [*tables, table({f"{TWO} / {ONE}": medians(rounds)})])
    sys.exit(bool(failed or different))


def _info(server: ServerProcess) -> Any:
    return httpx.get(f"{server.url}/v1/info", trust_env=False).json()


def _cpu_seconds(engine: psutil.Process) -> float:
    times = engine.cpu_times()
    return float(times.user + times.system)


if __name__ == "__main__":
    main()
