"""Admission of requests, with their log lines. All endpoints that generate images share it."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from longcat.errors import AdapterError, DeadlineError, LithographError
from longcat.logs import log_event
from longcat.model.flavour import Flavour
from longcat.problem import show
from longcat.sampling.encoding.source_picture import SourcePicture
from longcat.sampling.prompt import Tokenize
from service.access.caller import Caller, Role
from service.access.cost import pixel_steps_of
from service.config import ServiceConfig
from service.http.error_responses import error_body, error_shape_of
from service.http.exchange.exchange import Exchange
from service.http.exchange.mailboxes import Mailbox
from service.http.requests.threads import run_in_thread
from service.observability.refused_requests import error_fields
from service.observability.tracing import current_request
from service.wire.editing.fields import kind_of
from service.wire.errors import BusyError, DrainingError, NotReadyError
from service.wire.events import ErrorEvent, Event, ResultEvent
from service.wire.limits import Limits
from service.wire.messages import AdapterReport, GenerateCommand
from service.wire.picture import ModelIdentity
from service.wire.schema import NORMAL, GenerateRequest, ResolvedRequest
from service.wire.state import ServicePhase, ServiceState

log = logging.getLogger("lithograph")

_SERVER_ERROR = 500
"""The lowest status of a server error."""
_OVERTIME_SECONDS = 1.0
"""Time beyond a request's deadline, at which the engine ends it between two steps, that a step is still waited for."""

_T = TypeVar("_T")


class Admission:
    """Checks requests and sends them, over one exchange, to the engines."""

    def __init__(
        self,
        config: ServiceConfig,
        flavour: Flavour,
        limits: Limits,
        tokenize: Tokenize,
        exchange: Exchange,
        state: ServiceState,
    ) -> None:
        self.config = config
        self.flavour = flavour
        self.limits = limits
        self.tokenize = tokenize
        self.exchange = exchange
        self.started_at = int(time.time())
        self.state = state

    @property
    def model_identity(self) -> dict[str, object]:
        """Return what decides the files of a picture beside its request: the loaded model, the device, the metadata.

        Empty until the model is loaded.
        """
        if not (model := self.state.model):
            return {}
        properties = {name: model[name] for name in ModelIdentity.model_fields}
        device = str(model["device"]).partition(":")[0]
        return properties | {"device": device, "provenance": self.config.provenance.fixed}

    async def take(
        self,
        body: GenerateRequest,
        request: Request,
        *,
        stream: bool = False,
        progress: bool = False,
        previews: int | None = 0,
    ) -> GenerateCommand:
        """Return the command that generates a request's images; ``previews=None``: one after every step.

        Raises ``UnavailableError`` if no request is admitted now, or ``UserError``, of which ``ForbiddenError`` is one.
        """
        traced = current_request.get()
        command = await self.admit(
            body,
            request.state.caller,
            unique_id=request.state.unique_id,
            request_id=request.state.request_id,
            begin=request.state.begin,
            stream=stream,
            progress=progress,
            previews=previews,
            trace=None if traced is None else traced.carrier,
        )
        if traced is not None:
            traced.describe(command)
        request.state.is_admitted = True
        return command

    async def admit(
        self,
        body: GenerateRequest,
        caller: Caller,
        *,
        unique_id: str,
        request_id: str,
        begin: float,
        seconds: float | None = None,
        previews: int | None = 0,
        **fields: Any,
    ) -> GenerateCommand:
        """Return the command of a caller's request, as ``take`` does.

        ``seconds``: time limit of a request that gives none; ``fields``: further ones of the command, which must be sent.
        """
        caller.check(Role.GENERATE)
        for i, choice in enumerate(body.adapters):
            caller.check_adapter(choice.name, field=f"adapters.{i}.name")
        priority = caller.priority_of(body.priority)
        resolved, picture = await self._resolve(body)
        deadline = begin + (body.timeout_seconds or seconds or self.config.timeout_seconds)
        self.exchange.meters.begin(
            unique_id,
            caller,
            pixel_steps=pixel_steps_of(resolved),
            deadline=deadline,
            wait_seconds=self.exchange.wait_seconds,
        )
        return GenerateCommand(
            id=unique_id,
            request_id=request_id,
            request=resolved,
            picture=picture,
            defaulted=body.defaulted,
            max_steps=self.limits.max_steps,
            submitted_at=begin,
            deadline=deadline,
            key=caller.name,
            share=caller.allowance.share,
            priority=priority,
            previews=resolved.denoising_steps if previews is None else previews,
            **fields,
        )

    def check_ready(self) -> None:
        """Raise ``UnavailableError`` if no request is admitted now, however short the queue is."""
        if self.state.phase not in (ServicePhase.READY, ServicePhase.LINGERING):
            raise DrainingError if self.state.is_shutting_down else NotReadyError
        self.check_engine()

    @property
    def has_spare_room(self) -> bool:
        """True if work that no client waits for may begin: half of the queue is left to this server's clients."""
        is_ready = self.state.phase is ServicePhase.READY and self.exchange.stall() is None
        return is_ready and self.exchange.requests < max(1, self.config.max_queue // 2)

    async def _resolve(self, body: GenerateRequest) -> tuple[ResolvedRequest, SourcePicture | None]:
        self.check_ready()
        if body.image is not None:
            self._check_queue()  # before its pictures are decoded
        # In a thread: a long prompt takes tens of milliseconds, and a picture more, which would block the event loop.
        resolved = await run_in_thread(self.limits.resolve_with_picture, body, self.tokenize)
        self._check_queue()
        return resolved

    def _check_queue(self) -> None:
        if self.exchange.is_full:
            raise BusyError(requests=self.exchange.requests).after(self.exchange.wait_seconds)

    def check_engine(self) -> None:
        """Raise ``EngineStalledError`` if all engines hang."""
        if stall := self.exchange.stall():
            raise stall

    async def events(self, command: GenerateCommand, request: Request) -> AsyncGenerator[Event, None]:
        """Send a command and yield its events; the last is a ``ResultEvent`` or an ``ErrorEvent``.

        Closing the generator cancels the request, and so does the client by disconnecting: raises ``ClientDisconnect``.
        """
        try:
            async with self.exchange.send(command) as mailbox:
                while not mailbox.is_over:
                    yield await self.next(command, mailbox, gone(request), shape=error_shape_of(request))
        except DeadlineError as error:
            yield ErrorEvent(error)

    async def result(self, command: GenerateCommand, request: Request) -> ResultEvent:
        """Send a command and wait for its pictures. Raises the request's error, or ``ClientDisconnect``."""
        async with self.exchange.send(command) as mailbox:
            event = await self.next(command, mailbox, gone(request), shape=error_shape_of(request))
        if isinstance(event, ErrorEvent):
            raise event.error
        assert isinstance(event, ResultEvent)
        return event

    async def next(
        self,
        command: GenerateCommand,
        mailbox: Mailbox,
        until_gone: Coroutine[Any, Any, None],
        *,
        shape: Callable[[LithographError, str], tuple[int, BaseModel]] = error_body,
    ) -> Event:
        """Return the next event, and log it if it is the last; ``shape`` returns the status that an error's reply has.

        Raises ``ClientDisconnect`` once ``until_gone`` returns, or ``DeadlineError`` after the request's deadline.
        """
        try:
            event = await _wait_for(mailbox.next(), deadline=command.deadline, until_gone=until_gone)
        except (ClientDisconnect, asyncio.CancelledError):
            self._log_outcome(command, "cancelled")
            raise
        except DeadlineError as error:
            self._log_failure(command, error, shape(error, command.request_id)[0])
            raise
        match event:
            case ResultEvent():
                self.exchange.record_speed(event)
                unused = pixel_steps_of(command.request) - pixel_steps_of(event.request)
                self.exchange.meters.give_back(command.key, unused)
                adapters = [f"{a.reference} x {a.scale:g}" for a in event.adapters]
                timings = {name: round(seconds, 4) for name, seconds in event.timings.model_dump().items()}
                self._log_outcome(command, "drawn", steps=event.request.steps, adapters=adapters or None, **timings)
            case ErrorEvent():
                if not isinstance(event.error, DeadlineError):
                    self.exchange.meters.give_back(command.key, pixel_steps_of(command.request))
                self._log_failure(command, event.error, shape(event.error, command.request_id)[0])
        assert not isinstance(event, AdapterReport)
        return event

    def _log_failure(self, command: GenerateCommand, error: LithographError, status: int) -> None:
        # The engine's errors about adapters keep their names: an admitted request has names in the form of a reference.
        with_text = self.config.log_prompts or isinstance(error, AdapterError)
        self._log_outcome(command, "failed", **error_fields(error, status=status, with_text=with_text))

    def _log_outcome(self, command: GenerateCommand, outcome: str, **fields: Any) -> None:
        """Log the one line about a request that was admitted."""
        request = command.request
        chosen = {
            "steps": request.steps,
            "adapters": [f"{choice.name} x {choice.scale:g}" for choice in request.adapters] or None,
            "kind": None if request.edit is None else kind_of(request.edit),
            "prompt": show(request.prompt) if self.config.log_prompts else None,
        }
        log_event(
            log,
            f"request_{outcome}",
            logging.WARNING if fields.get("status", 0) >= _SERVER_ERROR else logging.INFO,
            request_id=command.request_id,
            key=command.key,
            priority=None if command.priority == NORMAL else command.priority,
            size=f"{request.width}x{request.height}",
            images=request.num_images,
            seed=request.seed,
            **chosen | fields,
            total_seconds=round(time.monotonic() - command.submitted_at, 4),
            trace_id=command.trace_id,
        )


async def gone(request: Request) -> None:
    """Return once the client has disconnected. For requests whose body is read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def admission_of(request: Request) -> Admission:
    """Return the app's admission."""
    admission: Admission = request.app.state.admission
    return admission


AdmissionDependency = Annotated[Admission, Depends(admission_of)]


async def _wait_for(coming: Coroutine[Any, Any, _T], *, deadline: float, until_gone: Coroutine[Any, Any, None]) -> _T:
    """Return the result of ``coming``. Raises ``ClientDisconnect`` once ``until_gone`` returns, or ``DeadlineError``."""
    waiting, disconnected = asyncio.ensure_future(coming), asyncio.ensure_future(until_gone)
    timeout = max(0.0, deadline + _OVERTIME_SECONDS - time.monotonic())
    try:
        await asyncio.wait({waiting, disconnected}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            return waiting.result()
        if disconnected.done():
            raise ClientDisconnect
        raise DeadlineError
    finally:
        waiting.cancel()
        disconnected.cancel()
