"""Loads of closed and open loops, and their results.

In a closed loop each client sends its next request after the reply to the previous one; in an open loop requests are sent at
given times, independent of replies. All servers get the same requests in the same order.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, cycle, islice

import numpy as np

from loadtest.servers import ServerProcess
from loadtest.traffic.figures import Figures, median, percentile
from loadtest.traffic.requests import ImageRequest, LoadClient, Reply

Answered = tuple[ImageRequest, Reply]


@dataclass(frozen=True, kw_only=True)
class Mix:
    """The common and the varying settings of a load's requests."""

    steps: tuple[int, ...] = (4, 8, 12, 20)
    """Numbers of steps, each used by equally many requests."""
    adapters: tuple[str, ...] = ()
    guidance_scale: float = 2.0
    """The embedded model's default."""
    size_px: int = 128
    """The embedded model's default."""

    def drawing(self, prompt: str, *, seed: int, steps: int, adapter: str | None) -> ImageRequest:
        """Return one request of this mix."""
        return ImageRequest(
            prompt=prompt,
            seed=seed,
            steps=steps,
            guidance_scale=self.guidance_scale,
            size_px=self.size_px,
            adapter=adapter,
        )

    def for_clients(self, prompts: Iterator[str], *, clients: int, each: int, seed: int) -> list[list[ImageRequest]]:
        """Return the requests of each client of a closed loop: client i uses adapter i; all make equally many steps."""
        random = np.random.default_rng(seed)
        work = []
        for client in range(clients):
            steps = random.permutation(list(islice(cycle(self.steps), each)))
            adapter = self.adapters[client % len(self.adapters)] if self.adapters else None
            work.append(
                [
                    self.drawing(
                        next(prompts), seed=seed * 100_000 + client * 1000 + i, steps=int(count), adapter=adapter
                    )
                    for i, count in enumerate(steps)
                ]
            )
        return work

    def arriving(
        self, prompts: Iterator[str], *, rate: float, count: int, seed: int
    ) -> list[tuple[float, ImageRequest]]:
        """Return ``count`` requests with Poisson arrival times in seconds, within exactly ``count / rate`` seconds."""
        random = np.random.default_rng(seed)
        times = np.sort(random.uniform(0, count / rate, count))
        steps = random.permutation(list(islice(cycle(self.steps), count)))
        names = random.permutation(list(islice(cycle(self.adapters), count))) if self.adapters else [None] * count
        return [
            (
                float(at),
                self.drawing(
                    next(prompts),
                    seed=seed * 100_000 + i,
                    steps=int(steps[i]),
                    adapter=None if names[i] is None else str(names[i]),
                ),
            )
            for i, at in enumerate(times)
        ]


@dataclass(frozen=True, kw_only=True)
class Result:
    """One server's replies to one load."""

    answered: tuple[Answered, ...]
    wall_seconds: float
    """Time from the first request to the last reply."""
    cpu_seconds: float
    """CPU time of all the server's processes."""

    @property
    def failed(self) -> list[Answered]:
        """Return the requests without a picture."""
        return [(drawing, reply) for drawing, reply in self.answered if reply.has_failed]

    @property
    def pictures(self) -> dict[ImageRequest, bytes]:
        """Return the pictures by request."""
        return {drawing: reply.content for drawing, reply in self.answered if not reply.has_failed}

    def figures(self) -> Figures:
        """Compute throughput, latencies of successful requests, and CPU time."""
        seconds = [reply.seconds for _, reply in self.answered if not reply.has_failed]
        drawn = len(seconds)
        return {
            "pictures_per_second": drawn / self.wall_seconds,
            "mean_seconds": sum(seconds) / max(drawn, 1),
            "p50_seconds": median(seconds),
            "p95_seconds": percentile(seconds, 95),
            "cpu_seconds_per_picture": self.cpu_seconds / max(drawn, 1),
        }


def closed_loop(server: ServerProcess, work: Sequence[Sequence[ImageRequest]]) -> Result:
    """Run a client for each list; a client sends its next request once the previous one is answered."""

    async def ask(client: LoadClient, drawings: Sequence[ImageRequest]) -> list[Answered]:
        return [(drawing, await client.draw(drawing)) for drawing in drawings]

    async def run() -> list[Answered]:
        async with LoadClient(server.url) as client:
            return list(chain.from_iterable(await asyncio.gather(*(ask(client, drawings) for drawings in work))))

    return _measure(server, run)


def open_loop(server: ServerProcess, arrivals: Sequence[tuple[float, ImageRequest]]) -> Result:
    """Send every request at its time. Latency counts from that time, not from the actual sending."""

    async def ask(client: LoadClient, at: float, drawing: ImageRequest) -> Answered:
        await asyncio.sleep(max(0.0, at - time.monotonic()))
        reply = await client.draw(drawing)
        late = reply.begin_seconds - at
        return drawing, Reply(
            status=reply.status,
            begin_seconds=at,
            seconds=reply.seconds + late,
            content=reply.content,
            headers=reply.headers,
        )

    async def run() -> list[Answered]:
        begin = time.monotonic()
        async with LoadClient(server.url) as client:
            return await asyncio.gather(*(ask(client, begin + at, drawing) for at, drawing in arrivals))

    return _measure(server, run)


def _measure(server: ServerProcess, run: Callable[[], Coroutine[None, None, list[Answered]]]) -> Result:
    with server.awake():
        cpu_seconds, begin = server.cpu_seconds(), time.monotonic()
        answered = asyncio.run(run())
        wall_seconds = time.monotonic() - begin
        return Result(
            answered=tuple(answered), wall_seconds=wall_seconds, cpu_seconds=server.cpu_seconds() - cpu_seconds
        )
