"""The generation of one line's pictures: as a request of its key, with its own limits, at a low priority."""

import asyncio
import hashlib
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from longcat.errors import LithographError, UserError
from longcat.logs import log_event
from service.access.caller import Caller
from service.http.admission import Admission
from service.http.compat.errors import openai_error
from service.http.compat.openai import check_model, images_of, in_sent_fields
from service.http.compat.openai_schema import EditsRequest, ImagesRequest
from service.http.edge.authentication import UnauthorizedError
from service.http.jobs.batches.records import BatchRecord
from service.http.jobs.batches.schema import BatchLine
from service.http.requests.json_body import read_value
from service.wire.errors import EngineEndedError, UnavailableError, wrapped
from service.wire.events import ErrorEvent, ResultEvent
from service.wire.messages import GenerateCommand
from service.wire.schema import LARGEST_SEED, GenerateRequest, Priority

log = logging.getLogger("lithograph")

CallerOf = Callable[[str | None], Awaitable[Caller | None]]
_PRIORITY: Priority = "low"
_MOST_STARTS = 10
"""Starts of one line by engines that ended, after which it fails: it may be what ends them."""
_ROOM_SECONDS = 0.2
"""Interval of looks for room in the queue."""
_LONGEST_WAIT_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class LineResult:
    """The reply to one line."""

    status: int
    body: dict[str, Any]


class LineGeneration:
    """Generates lines of one batch. No line raises: what is wrong with it is its result."""

    def __init__(self, admission: Admission, record: BatchRecord, caller_of: CallerOf) -> None:
        self._admission = admission
        self._record = record
        self._caller_of = caller_of
        self._model = EditsRequest if record.endpoint == "/v1/images/edits" else ImagesRequest

    async def result(
        self, line: BatchLine, size: int, *, number: int, request_id: str, versions: Mapping[str, int], hold: ExitStack
    ) -> LineResult:
        """Return the reply to a line of ``size`` bytes, once there is one that a repetition would not change.

        ``hold``: delays a shutdown from the moment at which there are pictures.
        """
        starts = 0
        base = self._admission.flavour.name
        body: ImagesRequest | None = None
        while True:
            try:
                body = body or await self._body(line, size)
                return await self._attempt(body, number, request_id, versions, hold)
            except UnavailableError as error:
                starts += isinstance(error, EngineEndedError)
                if starts >= _MOST_STARTS:
                    return self._failed(error, request_id)
                await asyncio.sleep(min(error.retry_after_seconds, _LONGEST_WAIT_SECONDS))
            except LithographError as error:
                return self._failed(error if body is None else in_sent_fields(error, body, base), request_id)
            except Exception as error:  # any: it ends this line, and no other
                log.exception("request %s failed", request_id)
                return self._failed(wrapped(error), request_id)

    async def _body(self, line: BatchLine, size: int) -> ImagesRequest:
        most = self._admission.config.max_body_bytes
        body = await asyncio.to_thread(read_value, self._model, line.body, size, most)
        assert isinstance(body, ImagesRequest)
        if body.stream:
            raise UserError(
                "batch_line_streams", "lines of a batch are not streamed", remedy="leave it out", field="stream"
            )
        check_model(body, self._admission)
        return body

    async def _attempt(
        self, body: ImagesRequest, number: int, request_id: str, versions: Mapping[str, int], hold: ExitStack
    ) -> LineResult:
        admission = self._admission
        while not admission.has_spare_room:
            await asyncio.sleep(_ROOM_SECONDS)
        if (caller := await self._caller_of(self._record.key)) is None:
            raise UnauthorizedError(
                "batch_key_removed",
                "the API key {key}, which made the batch, has been removed",
                remedy="make the batch with another key",
                key=self._record.key,
            )
        for i, choice in enumerate(body.adapters):  # by the names that the line has
            caller.check_adapter(choice.name, field=f"adapters.{i}.name")
        left = (self._record.expires_at - datetime.now(UTC)).total_seconds()
        command = await admission.admit(
            self._request(body, number, versions),
            caller,
            unique_id=str(uuid.uuid4()),
            request_id=request_id,
            begin=time.monotonic(),
            seconds=max(1.0, left),
        )
        result = await self._generated(command, hold)
        reply = images_of(command, result, admission)
        return LineResult(status=200, body=reply.model_dump(mode="json", exclude_none=True))

    def _request(self, body: ImagesRequest, number: int, versions: Mapping[str, int]) -> GenerateRequest:
        """Return the request of a line, which is the same at every start: its seed and its adapter versions."""
        request = body.as_generate(self._admission.flavour.name)
        adapters = tuple(
            choice.model_copy(update={"name": f"{choice.name}@{versions[choice.name]}"})
            if choice.name in versions
            else choice
            for choice in request.adapters
        )
        seed = _seed(self._record.id, number) if request.seed is None else request.seed
        changes = {"adapters": adapters, "seed": seed, "priority": request.priority or _PRIORITY}
        return request.model_copy(update=changes)

    async def _generated(self, command: GenerateCommand, hold: ExitStack) -> ResultEvent:
        admission = self._admission
        async with admission.exchange.send(command) as mailbox:
            event = await admission.next(command, mailbox, _never(), shape=openai_error)
            hold.enter_context(admission.exchange.delay_shutdown())
        if isinstance(event, ErrorEvent):
            raise event.error
        assert isinstance(event, ResultEvent)
        return event

    def _failed(self, error: LithographError, request_id: str) -> LineResult:
        status, body = openai_error(error, request_id)
        codes = [problem.code for problem in error.problems]
        log_event(
            log, "batch_line_failed",
            request_id=request_id, batch=self._record.id, key=self._record.key, status=status, codes=codes,
        )  # fmt: skip
        return LineResult(status=status, body=body.model_dump(mode="json"))


def _seed(batch_id: str, number: int) -> int:
    """Return the seed of a line that gives none."""
    digest = hashlib.sha256(f"{batch_id}/{number}".encode()).digest()
    return int.from_bytes(digest[:4], "big") % LARGEST_SEED


async def _never() -> None:
    await asyncio.Event().wait()
