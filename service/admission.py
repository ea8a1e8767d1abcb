"""Admission: whether a request is taken now, and what is logged and counted about it. All endpoints that draw share it."""

import asyncio
import logging
import time
import uuid
from collections.abc import Coroutine, Iterator, MutableMapping
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from longcat.errors import DeadlineError, UserError
from longcat.flavour import Flavour
from longcat.logs import tell
from longcat.prompt import Tokenize
from service import metrics
from service.config import ServiceConfig
from service.exchange import Exchange, Mailbox
from service.limits import Limits
from service.messages import Draw, Failed, RefusedError, Reply
from service.picture import Rendered
from service.refusals import BodyTooLargeError, parse
from service.replies import DRAINING, NOT_READY, failure_of
from service.schema import GenerateRequest, ResolvedRequest
from service.tracing import current_request

log = logging.getLogger("lithograph")

CLIENT_GONE = 499
"""Nobody reads it; nginx counts such requests under this number."""
_SERVERS_FAULT = 500
"""And above."""
_OVERTIME_SECONDS = 1.0
"""The engine says itself that time is over, between two steps; this long after, nobody waits for the step to end."""

_T = TypeVar("_T")
_Wanted = TypeVar("_Wanted", bound=BaseModel)


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

    async def read(self, model: type[_Wanted], request: Request) -> _Wanted:
        """What a request asks for. Raises ``BodyTooLargeError``, ``NotJsonError`` or ``InvalidRequestError``."""
        with _refusals_logged():
            return parse(model, await self.read_body(request))

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
        with _refusals_logged():
            resolved = self._admit(wanted)
        traced = current_request.get()
        draw = Draw(
            id=str(uuid.uuid4()),
            request=resolved,
            submitted_at=begin,
            deadline=begin + min(wanted.timeout_seconds or float("inf"), self.config.timeout_seconds),
            progress=progress,
            previews=resolved.steps if previews is None else previews,
            trace=None if traced is None else traced.carrier,
        )
        if traced is not None:
            traced.describe(draw)
        return draw

    def _admit(self, wanted: GenerateRequest) -> ResolvedRequest:
        phase = self.state["phase"]
        if phase not in ("ready", "leaving"):
            raise RefusedError(DRAINING if phase == "draining" else NOT_READY)
        resolved = self.limits.resolve(wanted, self.tokenize)
        if self.exchange.is_full:
            message = f"{self.exchange.requests} requests are under way, as many as are taken; come back later"
            wait = self.exchange.wait_seconds
            raise RefusedError(Failed(status=429, code="busy", message=message, retry_after_seconds=wait))
        return resolved

    def send(self, draw: Draw) -> AbstractAsyncContextManager[Mailbox]:
        """Order it. Whoever leaves before the last reply cancels it."""
        return self.exchange.send(draw)

    async def next(self, draw: Draw, mailbox: Mailbox, gone: Coroutine[Any, Any, None]) -> Reply:
        """The next reply, noted if it is the last.

        Raises ``ClientDisconnect`` once ``gone`` returns, or ``DeadlineError`` when time is over.
        """
        try:
            reply = await _wait_for(mailbox.next(), deadline=draw.deadline, gone=gone)
        except (ClientDisconnect, asyncio.CancelledError):
            _log_outcome(draw, "cancelled")
            raise
        except DeadlineError as error:
            _log_outcome(draw, "failed", status=504, code="timeout", message=str(error))
            raise
        match reply:
            case Rendered():
                self.exchange.record_speed(reply, draw.request.steps)
                adapters = [f"{a.reference} x {a.scale:g}" for a in reply.adapters]
                timings = {name: round(seconds, 4) for name, seconds in reply.timings.model_dump().items()}
                _log_outcome(draw, "drawn", adapters=adapters or None, **timings)
            case Failed():
                _log_outcome(draw, "failed", status=reply.status, code=reply.code, message=reply.message)
        return reply

    async def answer(self, draw: Draw, request: Request) -> Rendered:
        """Order it and wait for the pictures. Raises ``RefusedError``, ``ClientDisconnect`` or ``DeadlineError``."""
        async with self.send(draw) as mailbox:
            reply = await self.next(draw, mailbox, gone(request))
        if isinstance(reply, Failed):
            raise RefusedError(reply)
        assert isinstance(reply, Rendered)
        return reply


async def gone(request: Request) -> None:
    """Returns once the client is gone. For requests whose body is read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def count(status: int, begin: float) -> None:
    """Count one request that is answered."""
    traced = current_request.get()
    metrics.observe_request(status, time.monotonic() - begin, None if traced is None else traced.trace_id)


def _log_outcome(draw: Draw, outcome: str, **fields: Any) -> None:
    """The one line about a request that was taken in."""
    request = draw.request
    wanted = {"adapters": [f"{choice.name} x {choice.scale:g}" for choice in request.adapters] or None}
    tell(
        log,
        f"request_{outcome}",
        logging.WARNING if fields.get("status", 0) >= _SERVERS_FAULT else logging.INFO,
        request_id=draw.id,
        size=f"{request.width}x{request.height}",
        steps=request.steps,
        images=request.num_images,
        seed=request.seed,
        **wanted | fields,
        total_seconds=round(time.monotonic() - draw.submitted_at, 4),
        trace_id=draw.trace_id,
    )


@contextmanager
def _refusals_logged() -> Iterator[None]:
    """Count and log what is not taken in."""
    try:
        yield
    except (RefusedError, UserError) as error:
        failed = failure_of(error)
        metrics.REJECTED.labels(failed.code).inc()
        traced = current_request.get()
        trace_id = None if traced is None else traced.trace_id
        tell(log, "request_refused", status=failed.status, code=failed.code, message=failed.message, trace_id=trace_id)
        raise


async def _wait_for(coming: Coroutine[Any, Any, _T], *, deadline: float, gone: Coroutine[Any, Any, None]) -> _T:
    """What comes, unless the client goes away (``ClientDisconnect``) or time is over (``DeadlineError``) first."""
    waiting, leaving = asyncio.ensure_future(coming), asyncio.ensure_future(gone)
    timeout = max(0.0, deadline + _OVERTIME_SECONDS - time.monotonic())
    try:
        await asyncio.wait({waiting, leaving}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            return waiting.result()
        if leaving.done():
            raise ClientDisconnect
        raise DeadlineError
    finally:
        waiting.cancel()
        leaving.cancel()
