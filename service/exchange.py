"""The HTTP process's side of the queues: commands to the engine process, replies from it, and how much is under way."""

import asyncio
import math
import multiprocessing
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from service import metrics
from service.messages import AdapterCommand, Cancel, Command, Draw, PreviewFile, Reply, Step
from service.picture import Rendered
from service.replies import ENGINE_ENDED

ENGINE = "engine"
"""The mailbox whose only news is that the engine process has ended."""
_SMOOTHING = 0.2


class Mailbox:
    """Replies to one command. LitServe fills it: it appends to ``response_queue`` and sets ``event``."""

    def __init__(self) -> None:
        self.response_queue: deque[tuple[Reply, Any]] = deque()
        self.event = asyncio.Event()
        self.is_over = False

    async def next(self) -> Reply:
        """The next reply, once it is there."""
        while not self.response_queue:
            self.event.clear()
            await self.event.wait()
        reply, _ = self.response_queue.popleft()
        self.is_over = not isinstance(reply, Step | PreviewFile)
        return reply

    def put(self, reply: Reply) -> None:
        """A reply that does not come from the engine."""
        self.response_queue.append((reply, None))
        self.event.set()


class _EngineWatch:
    """Looks like a mailbox to LitServe; what arrives in it ends all the others."""

    def __init__(self, end_all: Callable[[], None]) -> None:
        self.response_queue = self
        self.event = asyncio.Event()
        self._end_all = end_all

    def append(self, _: object) -> None:
        """The engine process has ended."""
        self._end_all()


class Exchange:
    """Sends commands and hands out mailboxes."""

    def __init__(self, mailboxes: dict[str, Any], *, max_requests: int, pictures_at_a_time: int) -> None:
        """``mailboxes``: LitServe's response buffer, from which it looks up where a reply goes."""
        self._mailboxes = mailboxes
        self._mailboxes[ENGINE] = _EngineWatch(self._end_all)
        self._max_requests = max_requests
        self._pictures_at_a_time = pictures_at_a_time
        self.put: Callable[[Command], None]
        """Sends a command that has no reply."""
        self._requests = multiprocessing.Value("i", 0)  # the main process waits for it to become 0 before it ends
        self._delays = multiprocessing.Value("i", 0)
        self._steps = 0
        """Of all requests under way, times pictures."""
        self._step_seconds = 0.0
        """Of late, for one picture among those that share its forwards."""

    def connect(self, put: Callable[[Command], None]) -> None:
        """Where commands go."""
        self.put = put

    @property
    def requests(self) -> int:
        """Requests under way. Any process of the service may ask."""
        return int(self._requests.value)

    @property
    def unfinished(self) -> int:
        """Requests under way, and whatever else delays a shutdown. Any process of the service may ask."""
        return self.requests + int(self._delays.value)

    @property
    def is_full(self) -> bool:
        """Whether no further request is taken now."""
        return self.requests >= self._max_requests

    @property
    def wait_seconds(self) -> int:
        """How long what is under way will take, as far as can be told: at least 1."""
        return max(1, math.ceil(self._steps * self._step_seconds / self._pictures_at_a_time))

    @asynccontextmanager
    async def send(self, command: Draw) -> AsyncIterator[Mailbox]:
        """Where the replies arrive. Whoever leaves before the last one cancels the request."""
        steps = command.request.steps * command.request.num_images
        mailbox = self._mailboxes[command.id] = Mailbox()
        with self._requests.get_lock():
            self._requests.value += 1
        self._steps += steps
        try:
            with metrics.IN_PROGRESS.track_inprogress():
                await asyncio.to_thread(self.put, command)
                yield mailbox
        finally:
            self._steps -= steps
            with self._requests.get_lock():
                self._requests.value -= 1
            del self._mailboxes[command.id]
            if not mailbox.is_over:
                self.put(Cancel(id=command.id))

    @contextmanager
    def delay_shutdown(self) -> Iterator[None]:
        """While this is entered, a server that is shutting down does not stop, though no request is under way."""
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

    def record_speed(self, rendered: Rendered, steps: int) -> None:
        """Note how long the steps of a request took, for ``wait_seconds``."""
        seconds = rendered.timings.denoise_seconds / steps
        self._step_seconds += (seconds - self._step_seconds) * (_SMOOTHING if self._step_seconds else 1)

    def _end_all(self) -> None:
        for mailbox in self._mailboxes.values():
            if isinstance(mailbox, Mailbox):
                mailbox.put(ENGINE_ENDED)
