"""The chaos campaign: it detects violations, and a short run ends in a table and JSON."""

import asyncio
import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from loadtest.chaos import load
from loadtest.chaos.load import DROPPED, FAILED, HUNG, LOST, RIGHT, UNAVAILABLE, WRONG, Load
from loadtest.chaos.outcome import ScenarioOutcome, table
from loadtest.chaos.s3 import Proxy, Way
from tests import ROOT

PICTURE = b"a picture"


class ConfiguredServer:
    """A server with configured replies."""

    def __init__(self) -> None:
        self.status, self.content = 200, PICTURE
        self.url = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield
        server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if self.status == 0:
            await reader.read()
        elif self.status > 0:
            head = f"HTTP/1.1 {self.status} Said\r\nContent-Length: {len(self.content)}\r\nConnection: close\r\n\r\n"
            writer.write(head.encode() + self.content)
        writer.close()


@pytest.mark.parametrize(
    ("status", "content", "outcome"),
    [
        (200, PICTURE, RIGHT),
        (200, b"another picture", WRONG),
        (404, b"", LOST),
        (500, b"", FAILED),
        (422, b"", FAILED),
        (503, b"", UNAVAILABLE),
        (504, b"", UNAVAILABLE),
        (429, b"", UNAVAILABLE),
        (-1, b"", DROPPED),
        (0, b"", HUNG),
    ],
)
def test_every_reply_is_judged(status: int, content: bytes, outcome: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "_SLACK_SECONDS", 0.2)

    async def run() -> Load:
        deadline_seconds = (
            0.5 if outcome == HUNG else 60.0
        )  # a busy machine must not turn another outcome into this one
        server = ConfiguredServer()
        asking = Load([{"prompt": "a cat"}], clients=2, deadline_seconds=deadline_seconds, seed=0)
        async with server.running():
            await asking.learn(server.url)
            server.status, server.content = status, content
            async with asking.on(lambda: server.url):
                await asyncio.sleep(0.1)
        return asking

    asking = asyncio.run(run())
    assert asking.counts.keys() == {outcome}
    assert bool(asking.faults) == (outcome in (WRONG, LOST, FAILED, HUNG))
    assert ScenarioOutcome(name="it", counts=asking.counts).holds == (outcome in (RIGHT, UNAVAILABLE, DROPPED))


def test_what_never_recovers_or_has_a_fault_does_not_hold() -> None:
    assert ScenarioOutcome(name="good", recoveries=[1.0]).holds
    never, orphan = (
        ScenarioOutcome(name="never", recoveries=[1.0, math.inf]),
        ScenarioOutcome(name="orphan", faults=["outlived"]),
    )
    assert not never.holds
    assert not orphan.holds
    text = table([never, orphan, ScenarioOutcome(name="left out", skipped="needs root", counts=Counter())])
    assert text.count("FAIL") == 2
    assert "orphan: outlived" in text
    assert "needs root" in text


def test_the_way_to_storage_is_open_cut_silent_or_forbidden() -> None:
    async def ask(proxy: Proxy) -> bytes | None:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        try:
            async with asyncio.timeout(0.5):
                writer.write(b"GET / HTTP/1.1\r\n\r\n")
                return await reader.read()
        except TimeoutError:
            return None
        except ConnectionError:
            return b""
        finally:
            writer.close()

    async def run() -> dict[Way, bytes | None]:
        server = ConfiguredServer()
        async with server.running():
            proxy = Proxy(int(server.url.rpartition(":")[2]))
            async with proxy.running():
                answers: dict[Way, bytes | None] = {}
                ways: tuple[Way, ...] = ("open", "cut", "silent", "forbidden")
                for way in ways:
                    proxy.set(way)
                    answers[way] = await ask(proxy)
                return answers

    answers = asyncio.run(run())
    assert answers["open"] is not None
    assert answers["open"].endswith(PICTURE)
    assert answers["cut"] == b""
    assert answers["silent"] is None
    assert answers["forbidden"] is not None
    assert answers["forbidden"].startswith(b"HTTP/1.1 403")


def test_a_short_run_ends_in_a_table_and_figures(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "loadtest.chaos", "--only", "term", "--output", str(tmp_path / "chaos.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SIGTERM" in done.stdout
    (scenario,) = json.loads((tmp_path / "chaos.json").read_text())["scenarios"]
    assert scenario["holds"]
    assert scenario["requests"]["right"] > 0
