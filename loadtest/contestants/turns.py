"""Turns of API keys on the service: a key that floods, a request of high priority, and what keys cost.

- *Flood*: four keys with equally many clients in a closed loop, then one of them with ten times as many, in interleaved
  rounds. Of the other three: Jain's index of their throughput (1: equal; Jain, Chiu and Hawe, 1984), and p95 of their
  latency relative to the round before.
- *High priority*: while that key floods, requests of high priority come one by one. Time from sending to the first
  ``progress`` event, less that for the prompt by the request's own timings, in mean step times of the server meanwhile.
- *Cost*: the same closed loop on a server without keys and on one with keys: rows of forwards a CPU second, in
  interleaved rounds.

Exit code 1 if a request failed.
"""

import argparse
import asyncio
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx

from loadtest.contestants.contestants import add_service_options, service_on, settings
from loadtest.servers import ServerProcess, ServerSetup, running
from loadtest.traffic.figures import Figures, machine, median, medians, percentile, ratios, report, table
from loadtest.traffic.requests import ImageRequest, LoadClient, Reply, StreamError, prompts
from loadtest.traffic.traffic import Mix

FLOOD, OTHERS, HIGH, OPS = "flood", ("a", "b", "c"), "high", "ops"
_KEYED, _OPEN = "with keys", "without keys"
_ROWS = re.compile(r"^lithograph_rows_total\{[^}]*\} ([0-9.e+-]+)", re.MULTILINE)
_STEP_TIME = re.compile(r"^lithograph_step_seconds_(sum|count)\{[^}]*\} ([0-9.e+-]+)", re.MULTILINE)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_service_options(parser, adapters=0)
    parser.add_argument("--clients", type=int, default=3, help="a key; the one that floods has ten times as many")
    parser.add_argument("--seconds", type=float, default=40, help="a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--high", type=int, default=20, help="requests of high priority")
    parser.add_argument("--parts", default=",".join(PARTS), help="of those above")
    arguments = parser.parse_args()
    about = machine()
    with tempfile.TemporaryDirectory(prefix="loadtest-") as scratch:
        keys, recipes = _set_up(arguments, Path(scratch))
        with running(recipes, Path(scratch)) as servers:
            load = KeyedLoad(keys, arguments)
            measured = {
                part: measure(servers, load, arguments) for part, measure in PARTS.items() if part in arguments.parts
            }
    failed = [problem for _, problems in measured.values() for problem in problems]
    summary = {name: value for found, _ in measured.values() for name, value in medians(found).items()}
    content = {**{part: found for part, (found, _) in measured.items()}, "failed": failed}
    report(
        {"measured": "turns of keys", "settings": settings(arguments), "machine": about, "median": summary, **content},
        [table({"turns": summary})],
    )
    sys.exit(bool(failed))


class KeyedLoad:
    """Clients of keys in closed loops."""

    def __init__(self, keys: Mapping[str, str], arguments: argparse.Namespace) -> None:
        self.keys = keys
        self.mix = Mix()
        self._texts = prompts(arguments.seed)
        self._steps = cycle(self.mix.steps)
        self._seeds = iter(range(10**9))

    def request(self, **fields: Any) -> ImageRequest:
        """Return the next request."""
        return ImageRequest(
            prompt=next(self._texts), seed=next(self._seeds), size_px=self.mix.size_px,
            guidance_scale=self.mix.guidance_scale, **{"steps": next(self._steps)} | fields,
        )  # fmt: skip

    async def run(
        self, server: ServerProcess, clients: Mapping[str | None, int], *, seconds: float
    ) -> dict[str | None, list[Reply]]:
        """Run clients of each key for so long, and return the replies that came after the first third of that time.

        Before, the clients that all begin at once have their prompts encoded.
        """
        counted = time.monotonic() + seconds / 3
        replies: dict[str | None, list[Reply]] = {key: [] for key in clients}

        async def ask(client: LoadClient, key: str | None) -> None:
            while True:
                replies[key].append(await client.draw(self.request()))

        async with AsyncExitStack() as stack:
            connected = {
                key: await stack.enter_async_context(
                    LoadClient(server.url, key=None if key is None else self.keys[key])
                )
                for key in clients
            }
            tasks = [asyncio.ensure_future(ask(connected[key], key)) for key in clients for _ in range(clients[key])]
            try:
                await asyncio.sleep(seconds)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        return {
            key: [reply for reply in each if reply.begin_seconds + reply.seconds > counted]
            for key, each in replies.items()
        }


def _set_up(arguments: argparse.Namespace, folder: Path) -> tuple[dict[str, str], list[ServerSetup]]:
    """Make the keys; return them with a server that wants them and one that does not."""
    file, keys = folder / "keys.json", {}
    for name in (FLOOD, *OTHERS, HIGH, OPS):
        options = ["--highest-priority", "high"] if name == HIGH else ["--role", "admin"] if name == OPS else []
        command = [sys.executable, "-m", "lithograph", "keys", "add", name, "--file", str(file), *options]
        keys[name] = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    arguments.serve_options += " --max-queue 200"
    plain = service_on(None, arguments)
    keyed = (*plain.options, "--api-keys-file", str(file))
    return keys, [replace(plain, name=_KEYED, options=keyed), replace(plain, name=_OPEN)]


def _flood(
    servers: Mapping[str, ServerProcess], load: KeyedLoad, arguments: argparse.Namespace
) -> tuple[list[Figures], list[str]]:
    server = servers[_KEYED]
    calm = dict.fromkeys((FLOOD, *OTHERS), arguments.clients)
    storm = calm | {FLOOD: 10 * arguments.clients}
    found: list[Figures] = []
    failed: list[str] = []
    with server.awake():
        asyncio.run(load.run(server, calm, seconds=arguments.seconds / 4))
        for _ in range(arguments.rounds):
            before, during = (
                asyncio.run(load.run(server, clients, seconds=arguments.seconds)) for clients in (calm, storm)
            )
            failed += [reply.problem for replies in (before, during) for reply in _failed(replies)]
            rates = [len(during[key]) for key in OTHERS]
            if not all(rates):
                sys.exit("a key got no picture in a round: give more --seconds")
            p95 = [percentile([r.seconds for key in OTHERS for r in each[key]], 95) for each in (before, during)]
            found.append(
                {
                    "jain_index_of_others": sum(rates) ** 2 / (len(rates) * sum(rate**2 for rate in rates)),
                    "p95_of_others_with_flood_relative": p95[1] / p95[0],
                    "share_of_flood": len(during[FLOOD]) / sum(map(len, during.values())),
                }
            )
            print(f"flood: {found[-1]}", file=sys.stderr, flush=True)
    return found, failed


def _high(
    servers: Mapping[str, ServerProcess], load: KeyedLoad, arguments: argparse.Namespace
) -> tuple[list[Figures], list[str]]:
    server = servers[_KEYED]
    clients = {FLOOD: 10 * arguments.clients, **dict.fromkeys(OTHERS, arguments.clients)}
    waits: list[float] = []
    failed: list[str] = []

    async def first_step(client: LoadClient, ops: LoadClient) -> float:
        sums = _step_time((await ops.get("/metrics")).text)
        first, text = 0.0, 0.0
        sent = asyncio.get_running_loop().time()
        async for event in client.stream(load.request(priority="high", steps=8)):
            if event.name == "progress" and not first:
                first = asyncio.get_running_loop().time() - sent
            elif event.name == "result":
                text = event.data["timings"]["text_seconds"]
        later = _step_time((await ops.get("/metrics")).text)
        step = (later[0] - sums[0]) / (later[1] - sums[1])
        return (first - text) / step

    async def run() -> None:
        crowd = asyncio.ensure_future(load.run(server, clients, seconds=10**6))
        await asyncio.sleep(arguments.seconds / 4)
        async with (
            LoadClient(server.url, key=load.keys[HIGH]) as client,
            LoadClient(server.url, key=load.keys[OPS]) as ops,
        ):
            for _ in range(arguments.high):
                try:
                    waits.append(await first_step(client, ops))
                except StreamError as error:
                    failed.append(str(error))
                await asyncio.sleep(0.3)
        crowd.cancel()
        await asyncio.gather(crowd, return_exceptions=True)

    with server.awake():
        asyncio.run(run())
    return [{"high_first_step_median": median(waits), "high_first_step_p95": percentile(waits, 95)}], failed


def _cost(
    servers: Mapping[str, ServerProcess], load: KeyedLoad, arguments: argparse.Namespace
) -> tuple[list[Figures], list[str]]:
    found: dict[str, list[Figures]] = {name: [] for name in servers}
    failed: list[str] = []
    for number in range(2 * arguments.rounds + 1):
        for name in sorted(servers, reverse=number % 2 == 1):  # in turn, which of them is first
            server = servers[name]
            keyed = name == _KEYED
            clients: dict[str | None, int] = (
                dict.fromkeys((FLOOD, *OTHERS), arguments.clients) if keyed else {None: 4 * arguments.clients}
            )
            with server.awake():
                rows, before = _rows(server), server.cpu_seconds()
                replies = asyncio.run(load.run(server, clients, seconds=arguments.seconds / 4))
                used, made = server.cpu_seconds() - before, _rows(server) - rows
            failed += [reply.problem for reply in _failed(replies)]
            if number:  # the first is to warm up
                found[name].append({"rows_per_cpu_second_with_keys_relative": made / used})
    return ratios(found[_KEYED], found[_OPEN]), failed


PARTS = {"flood": _flood, "high": _high, "cost": _cost}


def _failed(replies: Mapping[str | None, list[Reply]]) -> Iterator[Reply]:
    return (reply for each in replies.values() for reply in each if reply.has_failed)


def _rows(server: ServerProcess) -> float:
    """Return the rows of all forwards so far."""
    return sum(map(float, _ROWS.findall(httpx.get(f"{server.url}/metrics", trust_env=False).text)))


def _step_time(exposition: str) -> tuple[float, float]:
    """Return the time of all forwards so far, and their number."""
    found = {name: float(value) for name, value in _STEP_TIME.findall(exposition)}
    return found["sum"], found["count"]


if __name__ == "__main__":
    main()
