"""Scenarios in which processes are killed, stopped, terminated and replaced."""

import asyncio
import random
import signal
import time

from loadtest.chaos.load import RIGHT, answers
from loadtest.chaos.outcome import ScenarioOutcome
from loadtest.chaos.server import ChaosServer, running
from loadtest.chaos.stage import Stage

_LONGEST_WAIT_SECONDS = 3.0
_LOOK_SECONDS = 0.2
_LINGER_SECONDS = 3
_BALANCER_SECONDS = 0.5


async def kills(stage: Stage, server: ChaosServer) -> list[ScenarioOutcome]:
    """Kill each process with SIGKILL repeatedly, at random moments under load, while versions are published."""
    outcomes = []
    for role in stage.roles:
        outcome = ScenarioOutcome(name=f"kill -9 {role}")
        async with stage.load.on(lambda: server.url):
            for _ in range(stage.kills):
                publishing = asyncio.create_task(asyncio.to_thread(stage.publish_one))
                await asyncio.sleep(random.uniform(0, _LONGEST_WAIT_SECONDS))
                begin = time.monotonic()
                server.signal(role, signal.SIGKILL)
                outcome.recoveries.append(await server.recovery_seconds(stage.load, begin))
                await publishing
        outcome.notes["restarts of the server"] = len(server.exit_codes)
        server.exit_codes.clear()
        outcomes.append(stage.finish(outcome, server))
    stage.check_published(server, outcomes[-1])
    return outcomes


async def stops(stage: Stage, server: ChaosServer) -> list[ScenarioOutcome]:
    """Stop each process for a while with SIGSTOP; the engine for longer than a request may take."""
    outcomes = []
    for role in ("http", "manager", "engine", "main"):
        seconds = stage.deadline_seconds + stage.hold_seconds if role == "engine" else stage.hold_seconds
        outcome = ScenarioOutcome(name=f"SIGSTOP {role}, {seconds:.0f} s")
        async with stage.load.on(lambda: server.url):
            await asyncio.sleep(1)
            begin = time.monotonic()
            server.signal(role, signal.SIGSTOP)
            process = server.processes()[role]
            if role == "engine":
                outcome.notes["not ready after, s"] = await _not_ready_seconds(server, begin, seconds)
            await asyncio.sleep(max(0.0, begin + seconds - time.monotonic()))
            if process.is_running():
                process.send_signal(signal.SIGCONT)
            outcome.recoveries.append(await server.recovery_seconds(stage.load, time.monotonic()))
        if role == "engine" and outcome.notes["not ready after, s"] is None:
            outcome.faults.append("a stopped engine stays ready")
        outcomes.append(stage.finish(outcome, server))
    return outcomes


async def _not_ready_seconds(server: ChaosServer, begin: float, limit: float) -> float | None:
    while time.monotonic() < begin + limit:
        if await answers(server.url, "/readyz", seconds=5) is None:
            return round(time.monotonic() - begin, 1)
        await asyncio.sleep(_LOOK_SECONDS)
    return None


async def ends(stage: Stage, server: ChaosServer) -> list[ScenarioOutcome]:
    """End a server with SIGTERM under load: running requests are finished, and the exit code is 0."""
    outcome = ScenarioOutcome(name="SIGTERM")
    async with stage.load.on(lambda: server.url):
        await asyncio.sleep(2)
        seconds = await server.stop()
        begin = time.monotonic()
        server.start()
        outcome.recoveries.append(await server.recovery_seconds(stage.load, begin))
    outcome.notes |= {"ended after, s": round(seconds, 1), "exit code": server.exit_codes[0]}
    if server.exit_codes != [0]:
        outcome.faults.append(f"exit codes {server.exit_codes}")
    server.exit_codes.clear()
    return [stage.finish(outcome, server)]


async def rolling_update(stage: Stage, server: ChaosServer) -> list[ScenarioOutcome]:
    """Replace a server behind a load balancer that polls /readyz twice a second: no request may fail."""
    outcome = ScenarioOutcome(name="rolling update")
    options = [*stage.options(), "--linger-seconds", str(_LINGER_SECONDS)]
    old, new = ChaosServer(stage.folder, options), ChaosServer(stage.folder, options)
    ready = [old]

    async def look() -> None:
        while True:
            found = [one for one in (new, old) if await answers(one.url, "/readyz", seconds=1) is not None]
            ready[:] = found or ready
            await asyncio.sleep(_BALANCER_SECONDS)

    async with running(old), running(new):
        balancer = asyncio.create_task(look())
        async with stage.load.on(lambda: ready[-1].url):  # the old one as long as it is ready
            await asyncio.sleep(2)
            outcome.notes["the old one ended after, s"] = round(await old.stop(), 1)
            await asyncio.sleep(2)
        balancer.cancel()
    if noticed := {kind: count for kind, count in stage.load.counts.items() if kind != RIGHT}:
        outcome.faults.append(f"requests noticed the update: {noticed}")
    if old.exit_codes[0] != 0:
        outcome.faults.append(f"the old server's exit code is {old.exit_codes[0]}")
    server.orphans += old.orphans + new.orphans
    return [stage.finish(outcome, server)]
