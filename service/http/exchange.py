"""The HTTP process's side of the queues: commands to the engine process, replies from it, and the load."""

import asyncio
import logging
import math
import multiprocessing
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from longcat.errors import DeadlineError
from service.observability import metrics
from service.wire.errors import EngineEndedError
from service.wire.events import AcceptedEvent, ErrorEvent, PreviewEvent, ResultEvent, StepEvent
from service.wire.messages import ENGINE, AdapterCommand, CancelCommand, Command, GenerateCommand, Heartbeat, Reply

log = logging.getLogger("lithograph")

_SMOOTHING = 0.2
_HEARTBEATS_KEPT = 20


class Mailbox:
    """Replies to one command. LitServe fills it: it appends to ``response_queue`` and sets ``event``."""

    def __init__(self) -> None:
        self.response_queue: deque[tuple[Reply, Any]] = deque()
        self.event = asyncio.Event()
        self.is_over = False

    async def next(self) -> Reply:
        """Wait for the next reply and return it."""
        while not self.response_queue:
            self.event.clear()
            await self.event.wait()
        reply, _ = self.response_queue.popleft()
        self.is_over = not isinstance(reply, AcceptedEvent | StepEvent | PreviewEvent)
        return reply

    def put(self, reply: Reply) -> None:
        """Add a reply that does not come from the engine."""
        self.response_queue.append((reply, None))
        self.event.set()


class EngineMailbox:
    """The mailbox ``ENGINE``: notes heartbeats and the end of an engine process."""

    def __init__(self, on_end: Callable[[], None]) -> None:
        self.response_queue = self
        self.event = asyncio.Event()
        self.last_heartbeat = self.last_end = 0.0
        """Time of the last heartbeat, and of the last end of an engine process, on ``time.monotonic``'s clock."""
        self._step_seconds: deque[float] = deque(maxlen=_HEARTBEATS_KEPT)
        self._on_end = on_end

    @property
    def step_seconds(self) -> float:
        """Return the longest of the last passes of the engine's loop."""
        return max(self._step_seconds, default=0.0)

    def append(self, response: tuple[Heartbeat | None, Any]) -> None:
        """Take a message. LitServe calls it, and would receive no further reply after an exception."""
        heartbeat, _ = response
        try:
            if heartbeat is None:
                self.last_end = time.monotonic()
                self._on_end()
            else:
                self.last_heartbeat = time.monotonic()
                self._step_seconds.append(heartbeat.step_seconds)
                metrics.HEARTBEAT.set_to_current_time()
        except Exception:  # any, such as a full disk
            log.exception("a message of the engine process was lost")


class Exchange:
    """Sends commands and hands out mailboxes."""

    def __init__(self, mailboxes: dict[str, Any], *, max_requests: int, pictures_at_a_time: int) -> None:
        """``mailboxes``: LitServe's response buffer, from which it looks up where a reply goes."""
        self._mailboxes = mailboxes
        self.engine = self._mailboxes[ENGINE] = EngineMailbox(self._end_all)
        self._max_requests = max_requests
        self._pictures_at_a_time = pictures_at_a_time
        self.put: Callable[[Command], None]
        """Sends a command that has no reply."""
        self._requests = multiprocessing.Value("i", 0)  # the main process waits for it to become 0 before it ends
        self._delays = multiprocessing.Value("i", 0)
        self._steps = 0
        """Steps of all requests under way, times their pictures."""
        self._step_seconds = 0.0
        """Recent time per step of one picture, divided by the pictures that share its forwards."""

    def connect(self, put: Callable[[Command], None]) -> None:
        """Set the function that sends a command to the engine process."""
        self.put = put

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
        return max(1, math.ceil(self._steps * self._step_seconds / self._pictures_at_a_time))

    @asynccontextmanager
    async def send(self, command: GenerateCommand) -> AsyncIterator[Mailbox]:
        """Send a command and yield its replies. Exiting the context before the final reply cancels the request.

        If the command cannot be sent before its deadline, that is its reply.
        """
        steps = command.request.steps * command.request.num_images
        mailbox = self._mailboxes[command.id] = Mailbox()
        with self._requests.get_lock():
            self._requests.value += 1
        self._steps += steps
        try:
            with metrics.IN_PROGRESS.track_inprogress():
                if command.submitted_at < self.engine.last_end:  # the next engine process would drop it
                    mailbox.put(ErrorEvent(EngineEndedError()))
                else:
                    await self._put_in_time(command, mailbox)
                yield mailbox
        finally:
            self._steps -= steps
            with self._requests.get_lock():
                self._requests.value -= 1
            del self._mailboxes[command.id]
            if not mailbox.is_over:
                asyncio.get_running_loop().run_in_executor(None, self.put, CancelCommand(id=command.id))

    async def _put_in_time(self, command: GenerateCommand, mailbox: Mailbox) -> None:
        """Send a command in a thread: a manager process that hangs would block the event loop."""
        try:
            seconds = max(0.0, command.deadline - time.monotonic())
            await asyncio.wait_for(asyncio.to_thread(self.put, command), seconds)
        except TimeoutError:
            mailbox.put(ErrorEvent(DeadlineError()))

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

    async def ask(self, command: AdapterCommand) -> Reply:
        """Send a command that has one reply."""
        mailbox = self._mailboxes[command.id] = Mailbox()
        try:
            await asyncio.to_thread(self.put, command)
            return await mailbox.next()
        finally:
            del self._mailboxes[command.id]

    def record_speed(self, result: ResultEvent, steps: int) -> None:
        """Record the step time of a request, for ``wait_seconds``."""
        seconds = result.timings.denoise_seconds / steps
        self._step_seconds += (seconds - self._step_seconds) * (_SMOOTHING if self._step_seconds else 1)

    def _end_all(self) -> None:
        for mailbox in self._mailboxes.values():
            if isinstance(mailbox, Mailbox):
                mailbox.put(ErrorEvent(EngineEndedError()))
