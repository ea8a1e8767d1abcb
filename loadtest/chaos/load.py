"""Repeated requests with a deadline; every picture is compared with its reference, byte by byte."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx

RIGHT, WRONG, LOST, FAILED, UNAVAILABLE, DROPPED, HUNG = (
    "right", "wrong", "lost", "failed", "unavailable", "dropped", "hung",
)  # fmt: skip
"""Outcomes of a request: its picture; another picture; 404 for a published adapter; a status that no fault explains; 429,
503 or 504; a broken connection; no reply within its deadline."""
_SLACK_SECONDS = 5.0
"""Tolerance of deadlines: the client shares the cores with the server."""
_PAUSE_SECONDS = 0.2
_READ_SECONDS = 3600.0
"""httpx's own time limit of reading is off: a request has one deadline."""
_SHOWN_FAULTS = 5

Body = dict[str, Any]


class Load:
    """Clients that request pictures with known bytes in a closed loop."""

    def __init__(self, bodies: Sequence[Body], *, clients: int, deadline_seconds: float, seed: int) -> None:
        self._bodies = [body | {"timeout_seconds": deadline_seconds} for body in bodies]
        self._references: list[bytes] = []
        self._clients = clients
        self._deadline_seconds = deadline_seconds
        self._random = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        """The first replies that no injected fault explains."""
        self.seconds: list[float] = []
        """Latencies of the right pictures."""

    async def learn(self, url: str) -> None:
        """Store the pictures of a healthy server, one request at a time, as references."""
        async with _http() as http:
            for body in self._bodies:
                reply = await http.post(f"{url}/generate", json=body)
                reply.raise_for_status()
                self._references.append(reply.content)

    def reset(self) -> None:
        """Reset the counts."""
        self.counts, self.faults, self.seconds = Counter(), [], []

    @asynccontextmanager
    async def on(self, url: Callable[[], str], *, idle_share: float = 0.0) -> AsyncIterator[None]:
        """Keep the clients busy; ``url`` is called for each request. Requests under way at the end are still counted.

        ``idle_share``: share of its time in which a client waits between two requests.
        """
        is_over = asyncio.Event()

        async def client() -> None:
            async with _http() as http:
                while not is_over.is_set():
                    begin = time.monotonic()
                    outcome = await self.ask(http, url())
                    self.counts[outcome] += 1
                    if outcome == RIGHT:
                        self.seconds.append(time.monotonic() - begin)
                    await asyncio.sleep((time.monotonic() - begin) * idle_share / (1 - idle_share))
                    if outcome in (UNAVAILABLE, DROPPED):
                        await asyncio.sleep(_PAUSE_SECONDS)

        async with asyncio.TaskGroup() as group:
            for _ in range(self._clients):
                group.create_task(client())
            try:
                yield
            finally:
                is_over.set()

    async def ask_all(self, url: str) -> None:
        """Send each request once, so that their adapters are in memory afterwards."""
        async with _http() as http:
            for index in range(len(self._bodies)):
                self.counts[await self.ask(http, url, index)] += 1

    async def ask(self, http: httpx.AsyncClient, url: str, index: int | None = None) -> str:
        """Send one request, at random unless one is named, and return its outcome."""
        if index is None:
            index = self._random.randrange(len(self._bodies))
        begin = time.monotonic()
        try:
            async with asyncio.timeout(self._deadline_seconds + _SLACK_SECONDS):
                reply = await http.post(f"{url}/generate", json=self._bodies[index])
        except TimeoutError:
            return self._fault(HUNG, f"no reply after {time.monotonic() - begin:.1f} s to {self._bodies[index]}")
        except httpx.HTTPError:
            return DROPPED
        if reply.status_code == 200:
            if reply.content == self._references[index]:
                return RIGHT
            return self._fault(WRONG, f"another picture ({len(reply.content)} bytes) for {self._bodies[index]}")
        if reply.status_code in (429, 503, 504):
            return UNAVAILABLE
        outcome = LOST if reply.status_code == 404 else FAILED
        return self._fault(outcome, f"{reply.status_code} {reply.text[:300]} for {self._bodies[index]}")

    async def is_right(self, url: str) -> bool:
        """Return True if a new connection gets a right picture now."""
        async with _http() as http:
            return await self.ask(http, url) == RIGHT

    def _fault(self, outcome: str, text: str) -> str:
        if len(self.faults) < _SHOWN_FAULTS:
            self.faults.append(f"{outcome}: {text}")
        return outcome


async def answers(url: str, path: str, *, seconds: float) -> float | None:
    """Return the seconds until a path answered 200 on a new connection; None if it did not within ``seconds``."""
    begin = time.monotonic()
    with suppress(httpx.HTTPError, TimeoutError):
        async with asyncio.timeout(seconds), _http() as http:
            if (await http.get(f"{url}{path}")).status_code == 200:
                return time.monotonic() - begin
    return None


def _http() -> httpx.AsyncClient:
    return httpx.AsyncClient(timeout=_READ_SECONDS, trust_env=False, limits=httpx.Limits(max_connections=None))
