"""The HTTP process's side of the queues: commands to the engine processes, replies from them, and the load."""

import asyncio
import math
import multiprocessing
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from longcat.errors import DeadlineError
from service.access.metering import KeyMeters
from service.http.exchange.adapter_changes import AdapterChanges
from service.http.exchange.engine_link import EngineLink, Put
from service.http.exchange.mailboxes import Mailbox
from service.http.exchange.routing import route
from service.observability import metrics
from service.wire.errors import EngineEndedError, EngineStalledError
from service.wire.events import ErrorEvent, ResultEvent
from service.wire.messages import AdapterCommand, CancelCommand, GenerateCommand, Reply, engine_mailbox
from service.wire.state import ServiceState

_SMOOTHING = 0.2


class Exchange:
    """Sends commands to the engines and hands out mailboxes."""

    def __init__(
        self,
        mailboxes: dict[str, Any],
        state: ServiceState,
        *,
        max_requests: int,
        pictures_at_a_time: int,
        stall_seconds: float,
    ) -> None:
        """``mailboxes``: LitServe's response buffer, from which it looks up where a reply goes.

        ``pictures_at_a_time``: of one engine.
        """
        self._mailboxes = mailboxes
        self.changes = AdapterChanges()
        self.meters = KeyMeters()
        self.engines = tuple(
            EngineLink(engine, stall_seconds=stall_seconds, missed=self.changes.commands) for engine in state.engines
        )
        mailboxes.update({engine_mailbox(number): engine.mailbox for number, engine in enumerate(self.engines)})
        self._max_requests = max_requests
        self._pictures_at_a_time = pictures_at_a_time
        self._requests = multiprocessing.Value("i", 0)  # the main process waits for it to become 0 before it ends
        self._delays = multiprocessing.Value("i", 0)
        self._step_seconds = 0.0
        """Recent time per step of one picture, divided by the pictures that share its forwards."""

    def connect(self, queues: Sequence[Put]) -> None:
        """Set the queue of each engine."""
        for engine, queue in zip(self.engines, queues, strict=True):
            engine.queue = queue

    @property
    def requests(self) -> int:
        """Return the number of requests under way. May be called in any process of the service."""
        return int(self._requests.value)

    @property
    def unfinished(self) -> int:
        """Return the requests under way and everything else that delays a shutdown. May be called in any process."""
        return self.requests + int(self._delays.value)

    @property
    def is_full(self) -> bool:
        """Return True if no further request is admitted now."""
        return self.requests >= self._max_requests

    @property
    def wait_seconds(self) -> int:
        """Estimate the seconds until the requests under way are finished: at least 1."""
        pictures = self._pictures_at_a_time * max(1, len(self._ready()))
        steps = sum(engine.steps_left for engine in self.engines)
        return max(1, math.ceil(steps * self._step_seconds / pictures))

    def stall(self) -> EngineStalledError | None:
        """Return an error if all engines hang that could take a request, or a command if none takes requests."""
        engines = self._ready() or [engine for engine in self.engines if engine.state.runs]
        stalls = [engine.stall() for engine in engines]
        return stalls[0] if stalls and all(stalls) else None

    @asynccontextmanager
    async def send(self, command: GenerateCommand) -> AsyncIterator[Mailbox]:
        """Send a command and yield its replies. Exiting the context before the final reply cancels the request.

        If the command cannot be sent before its deadline, that is its reply.
        """
        with self._requests.get_lock():
            self._requests.value += 1
        ready = self._ready()
        try:
            with metrics.IN_PROGRESS.track_inprogress():
                if ready:
                    async with self._sent(command, route(command.request, ready)) as mailbox:
                        yield mailbox
                else:  # since its admission, the last engine has ended
                    mailbox = Mailbox()
                    mailbox.put(ErrorEvent(EngineEndedError()))
                    yield mailbox
        finally:
            self.meters.end(command.id, command.key)
            with self._requests.get_lock():
                self._requests.value -= 1

    @asynccontextmanager
    async def _sent(self, command: GenerateCommand, engine: EngineLink) -> AsyncIterator[Mailbox]:
        with self._receiving(command, engine) as mailbox:
            try:
                try:
                    await asyncio.wait_for(engine.send(command), max(0.0, command.deadline - time.monotonic()))
                except TimeoutError:
                    mailbox.put(ErrorEvent(DeadlineError()))
                yield mailbox
            finally:
                if not mailbox.is_over:
                    cancel = CancelCommand(id=command.id)
                    asyncio.get_running_loop().run_in_executor(None, engine.put, cancel, time.monotonic())

    @contextmanager
    def delay_shutdown(self) -> Iterator[None]:
        """Delay a shutdown while this context is entered, even if no request is under way."""
        with self._delays.get_lock():
            self._delays.value += 1
        try:
            yield
        finally:
            with self._delays.get_lock():
                self._delays.value -= 1

    async def ask(self, engine: EngineLink, command: AdapterCommand) -> Reply:
        """Send a command that has one reply to one engine."""
        with self._receiving(command, engine) as mailbox:
            await engine.send(command)
            return await mailbox.next()

    def record_speed(self, result: ResultEvent) -> None:
        """Record the step time of a request, for ``wait_seconds``."""
        seconds = result.timings.denoise_seconds / result.request.denoising_steps
        self._step_seconds += (seconds - self._step_seconds) * (_SMOOTHING if self._step_seconds else 1)

    def _ready(self) -> list[EngineLink]:
        """Return the engines that take requests: those that do not hang, if there are any."""
        ready = [engine for engine in self.engines if engine.state.is_ready]
        return [engine for engine in ready if not engine.stall()] or ready

    @contextmanager
    def _receiving(self, command: GenerateCommand | AdapterCommand, engine: EngineLink) -> Iterator[Mailbox]:
        with engine.receiving(command) as mailbox:
            self._mailboxes[command.id] = mailbox
            try:
                yield mailbox
            finally:
                del self._mailboxes[command.id]
