"""A server under hostile requests, and under load for long."""

import asyncio
import json
import math
import time
from collections import Counter
from typing import Any

import httpx

from loadtest.chaos.load import RIGHT, answers
from loadtest.chaos.outcome import ScenarioOutcome
from loadtest.chaos.server import ROLES, ChaosServer
from loadtest.chaos.stage import Stage

_AT_ONCE = 8
_HEALTH_SECONDS = 10.0
_HEALTH_EVERY_SECONDS = 0.1
HOSTILE: dict[str, Any] = {
    "a quoted text of 61,000 letters": {"prompt": '"' + "a" * 61_000 + '"'},
    "25,000 apostrophes": {"prompt": "\"' " + "a'" * 25_000},
    "quotes as a negative prompt": {"prompt": "a", "negative_prompt": "“猫" * 10_000},
    "quotes to be rewritten": {"prompt": "'" * 60_000, "rewrite_prompt": True},
    "30,000 adapters": {"prompt": "a", "adapters": [1] * 30_000},
    "5,000 unknown fields": {"prompt": "a"} | {f"f{number}": number for number in range(5_000)},
    "a width of 401 digits": {"prompt": "a", "width": 10**400 + 1},
    "a list of 8,000 lists": {"prompt": "a", "adapters": [[[]]] * 8_000},
}
"""Bodies that must be rejected; each once caused seconds of work on the event loop, a log line of megabytes, or a 500."""
_WINDOWS = 6
"""Windows of a soak, whose measurements are compared."""
_IDLE_SHARE = 0.1
_MOST_GROWTH = 1.15
"""Memory of a process in the last window, as a multiple of that in the first."""


async def hostile_requests(stage: Stage, server: ChaosServer) -> list[ScenarioOutcome]:
    """Send each hostile body eight times at once, by both routes: all are rejected, and ``/healthz`` answers meanwhile."""
    outcome = ScenarioOutcome(name=f"hostile requests, {_AT_ONCE} at once")
    silences: list[float] = []
    statuses: Counter[int] = Counter()
    is_over = asyncio.Event()

    async def ask_health() -> None:
        while not is_over.is_set():
            seconds = await answers(server.url, "/healthz", seconds=_HEALTH_SECONDS)
            silences.append(_HEALTH_SECONDS if seconds is None else seconds)
            await asyncio.sleep(_HEALTH_EVERY_SECONDS)

    slowest: tuple[float, str] = (0.0, "")
    async with stage.load.on(lambda: server.url), asyncio.TaskGroup() as group:
        group.create_task(ask_health())
        async with httpx.AsyncClient(trust_env=False, timeout=stage.deadline_seconds) as http:
            for path in ("/generate", "/v1/images/generations"):
                for name, body in HOSTILE.items():
                    content, begin = _compact(body), time.monotonic()
                    posts = (http.post(f"{server.url}{path}", content=content) for _ in range(_AT_ONCE))
                    statuses.update(reply.status_code for reply in await asyncio.gather(*posts))
                    slowest = max(slowest, (time.monotonic() - begin, f"{name} to {path}"))
        is_over.set()
    outcome.notes |= {
        "statuses": dict(statuses), "/healthz at most, s": round(max(silences), 2), "asked": len(silences),
        f"slowest {_AT_ONCE}, s": round(slowest[0], 2), "of": slowest[1],
    }  # fmt: skip
    if statuses.keys() - {400, 413, 422}:
        outcome.faults.append(f"hostile bodies are answered with {dict(statuses)}")
    if max(silences) >= _HEALTH_SECONDS:
        outcome.faults.append(f"/healthz was silent for {max(silences):.0f} s")
    outcome.recoveries.append(await server.recovery_seconds(stage.load, time.monotonic()))
    return [stage.finish(outcome, server)]


async def soak(stage: Stage, server: ChaosServer) -> list[ScenarioOutcome]:
    """Keep the clients busy for nine tenths of the time; compare times and memory of the windows."""
    outcome = ScenarioOutcome(name=f"soak, {stage.soak_seconds:.0f} s")
    rows = []
    async with stage.load.on(lambda: server.url, idle_share=_IDLE_SHARE):
        await asyncio.sleep(stage.soak_seconds / (_WINDOWS + 1))  # caches fill
        for _ in range(_WINDOWS):
            stage.load.seconds.clear()
            await asyncio.sleep(stage.soak_seconds / (_WINDOWS + 1))
            times = sorted(stage.load.seconds)
            mib = {role: server.resident_bytes(role) >> 20 for role in ROLES}
            rows.append((_quantile(times, 0.5), _quantile(times, 0.99), len(times), mib))
    outcome.notes |= {
        "p50, s": [row[0] for row in rows], "p99, s": [row[1] for row in rows], "requests": [row[2] for row in rows],
        "MiB first": rows[0][3], "MiB last": rows[-1][3],
    }  # fmt: skip
    grown = {role: mib for role, mib in rows[-1][3].items() if mib > rows[0][3][role] * _MOST_GROWTH}
    if grown:
        outcome.faults.append(f"memory has grown from {rows[0][3]} to {grown} MiB")
    if unserved := {kind: count for kind, count in stage.load.counts.items() if kind != RIGHT}:
        outcome.faults.append(f"requests that were not served: {unserved}")
    return [stage.finish(outcome, server)]


def _compact(body: dict[str, Any]) -> bytes:
    """Return JSON without spaces: the service accepts bodies of 64 KiB."""
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def _quantile(times: list[float], share: float) -> float:
    return round(times[math.ceil(share * len(times)) - 1], 2) if times else math.inf
