"""The command ``make chaos``: every scenario against ``lithograph serve`` on 127.0.0.1; prints a table and JSON.

The server is started as a command; nothing of it is imported. Exit code 1 if a picture was wrong, a request hung past its
deadline, a published version was lost, a process outlived its server, or a server did not recover.
"""

import argparse
import asyncio
import json
import random
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from loadtest.chaos import clock, endurance, processes, replicas, resources, storage
from loadtest.chaos.load import Load
from loadtest.chaos.outcome import ScenarioOutcome, table
from loadtest.chaos.server import ROLES, ChaosServer, running
from loadtest.chaos.stage import Stage, bodies
from loadtest.servers import ROOT
from loadtest.traffic.figures import machine

Scenario = Callable[[Stage, ChaosServer], Awaitable[list[ScenarioOutcome]]]

SCENARIOS: dict[str, Scenario] = {
    "kill": processes.kills,
    "stop": processes.stops,
    "term": processes.ends,
    "directory": storage.directory_gone,
    "versions": storage.broken_versions,
    "s3": storage.s3_gone,
    "disk": resources.disk_full,
    "descriptors": resources.descriptors_exhausted,
    "half-open": resources.half_open,
    "rolling": processes.rolling_update,
    "clock": clock.clock_jumps,
    "jobs": replicas.lasting_jobs,
    "hostile": endurance.hostile_requests,
    "soak": endurance.soak,
}


def main() -> None:
    """Run the scenarios and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1, help="of each process")
    parser.add_argument("--role", choices=ROLES, action="append", help="a process to kill; repeatable, by default all")
    parser.add_argument("--hold", type=float, default=10.0, help="seconds of a fault that ends by itself")
    parser.add_argument("--deadline", type=float, default=20.0, help="seconds that a request may take")
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument(
        "--connections", type=int, default=10_000, help="half-open connections, if the limits allow so many"
    )
    parser.add_argument("--soak", type=float, default=60.0, help="seconds of load at 90%%")
    parser.add_argument("--jobs", type=int, default=200, help="lasting jobs, on three servers that are killed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=SCENARIOS, action="append", help="a scenario; repeatable")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "chaos.json")
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that no process is left running
    about, begin = machine(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        outcomes = asyncio.run(_run(arguments, Path(folder)))
    content = {
        "machine": about,
        "seconds": round(time.monotonic() - begin),
        "arguments": {name: str(value) for name, value in vars(arguments).items()},
        "scenarios": [outcome.to_json() for outcome in outcomes],
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(table(outcomes))
    print(f"figures: {arguments.output}")
    sys.exit(not all(outcome.holds for outcome in outcomes))


async def _run(arguments: argparse.Namespace, folder: Path) -> list[ScenarioOutcome]:
    load = Load(bodies(), clients=arguments.clients, deadline_seconds=arguments.deadline, seed=arguments.seed)
    stage = Stage(
        folder=folder, load=load, kills=arguments.kills, roles=arguments.role or ROLES, hold_seconds=arguments.hold,
        deadline_seconds=arguments.deadline, connections=arguments.connections, soak_seconds=arguments.soak,
        jobs=arguments.jobs,
    )  # fmt: skip
    stage.prepare()
    outcomes: list[ScenarioOutcome] = []
    async with running(ChaosServer(folder, stage.options())) as server:
        await load.learn(server.url)
        for name, scenario in SCENARIOS.items():
            if arguments.only and name not in arguments.only:
                continue
            begin = time.monotonic()
            made = await scenario(stage, server)
            outcomes += made
            print(f"{name}: {time.monotonic() - begin:.0f} s\n{table(made)}", file=sys.stderr, flush=True)
    return outcomes


if __name__ == "__main__":
    main()
