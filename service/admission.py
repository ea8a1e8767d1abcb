"""Whether a request is taken, what it is ordered as, and what is written down about it: the same for every way of asking."""

import asyncio
import logging
import time
import uuid
from collections.abc import Coroutine, MutableMapping
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from longcat.errors import DeadlineError
from longcat.flavour import Flavour
from longcat.prompt import Tokenize
from service import metrics
from service.config import ServiceConfig
from service.exchange import Exchange, Mailbox
from service.limits import Limits
from service.messages import Draw, Failed, RefusedError, Reply
from service.picture import Rendered
from service.refusals import BodyTooLargeError
from service.replies import DRAINING, NOT_READY, phases
from service.schema import GenerateRequest

log = logging.getLogger("lithograph")

CLIENT_GONE = 499
"""Nobody reads it; nginx counts such requests under this number."""
_OVERTIME_SECONDS = 1.0
"""The engine says itself that time is over, between two steps; this long after, nobody waits for the step to end."""

_T = TypeVar("_T")


class Admission:
    """Takes requests in, over one exchange with the engine process."""

    def __init__(
        self, config: ServiceConfig, flavour: Flavour, limits: Limits, tokenize: Tokenize, exchange: Exchange
    ) -> None:
        self.config = config
        self.flavour = flavour
        self.limits = limits
        self.tokenize = tokenize
        self.exchange = exchange
        self.state: MutableMapping[str, Any] = {}
        """Shared by all processes: ``phase``, and what is loaded."""

    async def read_body(self, request: Request) -> bytes:
        """A request's body. Raises ``BodyTooLargeError``."""
        limit = self.config.max_body_bytes
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise BodyTooLargeError(f"the body is over {limit} bytes; send a shorter prompt")
        return bytes(body)

    def take(self, wanted: GenerateRequest, begin: float, *, progress: bool = False, previews: int | None = 0) -> Draw:
        """What to order for a request; ``previews`` of each picture at most, None for one after every step.

        Raises ``RefusedError`` if none is taken now, or ``InvalidRequestError``.
        """
        phase = self.state["phase"]
        if phase not in ("ready", "leaving"):
            raise RefusedError(DRAINING if phase == "draining" else NOT_READY)
        resolved = self.limits.resolve(wanted, self.tokenize)
        if self.exchange.is_full:
            message = f"{self.exchange.requests} requests are under way, as many as are taken; come back later"
            wait = self.exchange.wait_seconds
            raise RefusedError(Failed(status=429, code="busy", message=message, retry_after_seconds=wait))
        return Draw(
            id=str(uuid.uuid4()),
            request=resolved,
            submitted_at=begin,
            deadline=begin + min(wanted.timeout_seconds or float("inf"), self.config.timeout_seconds),
            progress=progress,
            previews=resolved.steps if previews is None else previews,
        )

    def send(self, draw: Draw) -> AbstractAsyncContextManager[Mailbox]:
        """Order it. Whoever leaves before the last reply cancels it."""
        return self.exchange.send(draw)

    async def next(self, draw: Draw, mailbox: Mailbox, gone: Coroutine[Any, Any, None]) -> Reply:
        """The next reply, noted if it is the last.

        Raises ``ClientDisconnect`` once ``gone`` returns, or ``DeadlineError`` when time is over.
        """
        reply = await _before(draw.deadline, gone, mailbox.next())
        match reply:
            case Rendered():
                self._note(draw, reply)
            case Failed():
                self._log(draw, f"failed with {reply.status}: {reply.message}")
        return reply

    async def answer(self, draw: Draw, request: Request) -> Rendered:
        """Order it and wait for the pictures. Raises ``RefusedError``, ``ClientDisconnect`` or ``DeadlineError``."""
        async with self.send(draw) as mailbox:
            reply = await self.next(draw, mailbox, gone(request))
        if isinstance(reply, Failed):
            raise RefusedError(reply)
        assert isinstance(reply, Rendered)
        return reply

    def _note(self, draw: Draw, rendered: Rendered) -> None:
        request = draw.request
        self.exchange.learn(rendered, request.steps)
        metrics.observe_timings(rendered.timings)
        metrics.PICTURES.inc(request.num_images)
        metrics.STEPS.inc(request.steps * request.num_images)
        metrics.count_adapters(adapter.name for adapter in rendered.adapters)
        seconds = phases(rendered.timings)
        used = "".join(f" {adapter.reference} x {adapter.scale:g}" for adapter in rendered.adapters)
        self._log(draw, ", ".join(f"{phase} {value * 1000:.0f} ms" for phase, value in seconds.items()), used)

    def _log(self, draw: Draw, outcome: str, used: str = "") -> None:
        r = draw.request
        shown = f"{r.width}x{r.height} steps {r.steps} images {r.num_images} seed {r.seed}"
        log.info("request %s %s%s: %s", draw.id, shown, used and f" adapters{used}", outcome)


async def gone(request: Request) -> None:
    """Returns once the client is gone. For requests whose body is read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def count(status: int, begin: float) -> None:
    """Count one request that is answered."""
    metrics.REQUESTS.labels(str(status)).inc()
    metrics.REQUEST_SECONDS.labels(str(status)).observe(time.monotonic() - begin)


async def _before(deadline: float, gone: Coroutine[Any, Any, None], coming: Coroutine[Any, Any, _T]) -> _T:
    """What comes, unless the client goes away (``ClientDisconnect``) or time is over (``DeadlineError``) first."""
    waiting, leaving = asyncio.ensure_future(coming), asyncio.ensure_future(gone)
    timeout = max(0.0, deadline + _OVERTIME_SECONDS - time.monotonic())
    try:
        await asyncio.wait({waiting, leaving}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            return waiting.result()
        if leaving.done():
            raise ClientDisconnect
        raise DeadlineError("timeout_seconds is over; give more, or ask for fewer steps or pictures")
    finally:
        waiting.cancel()
        leaving.cancel()
