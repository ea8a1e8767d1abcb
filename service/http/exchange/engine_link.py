"""One engine, as the HTTP process knows it: its commands, its unfinished requests, its heartbeats."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from service.access.cost import pixel_steps_of
from service.http.exchange.mailboxes import EngineMailbox, Mailbox
from service.observability import metrics
from service.wire.errors import EngineEndedError, EngineStalledError
from service.wire.events import ErrorEvent
from service.wire.messages import AdapterCommand, Command, GenerateCommand
from service.wire.state import EngineState

_STEPS_TO_STALL = 3
"""An engine counts as stalled no sooner than after this many of its longest recent steps."""

Put = Callable[[tuple[float, Command]], None]
"""Puts a command, with the time at which it was sent, into the queue of an engine. May block."""


class EngineLink:
    """The link to one engine. All but ``put`` is called in the event loop."""

    def __init__(
        self, state: EngineState, *, stall_seconds: float, missed: Callable[[], Iterable[AdapterCommand]]
    ) -> None:
        """``missed``: the commands that a new engine process has to carry out before all others."""
        self.state = state
        self.mailbox = EngineMailbox(on_heartbeat=self._note_heartbeat, on_end=self._end_all)
        self.queue: Put
        """Set before the first command."""
        self._stall_seconds = stall_seconds
        self._missed = missed
        self._requests: dict[str, GenerateCommand] = {}
        self._mailboxes: dict[str, Mailbox] = {}
        self._putting = threading.Lock()
        self._process = 0
        """Number of the engine process that has the missed commands."""

    @property
    def work(self) -> float:
        """Return the work of the unfinished requests, less the steps that they had made at the last heartbeat."""
        left = self.mailbox.steps_left
        total = 0.0
        for command in self._requests.values():
            steps = command.request.denoising_steps * command.request.num_images
            total += pixel_steps_of(command.request) * left.get(command.id, steps) / steps
        return total

    @property
    def steps_left(self) -> int:
        """Return the steps of the unfinished requests, less those made at the last heartbeat.

        The engine knows them once a request's adapters are there, which may have a default of their own.
        """
        left = self.mailbox.steps_left
        return sum(
            left.get(command.id, command.request.denoising_steps * command.request.num_images)
            for command in self._requests.values()
        )

    @property
    def adapters(self) -> frozenset[str]:
        """Return names and ``name@version`` of the adapters in slots, and of those of the unfinished requests."""
        requested = (choice.name for command in self._requests.values() for choice in command.request.adapters)
        references = {*self.mailbox.adapters, *requested}
        return frozenset(references | {reference.partition("@")[0] for reference in references})

    def stall(self) -> EngineStalledError | None:
        """Return an error if the step loop should run, and has neither made a step nor idled for too long."""
        if not self.state.runs:
            return None
        seconds = time.monotonic() - max(self.mailbox.last_heartbeat, self.state.since)
        limit = max(self._stall_seconds, _STEPS_TO_STALL * self.mailbox.step_seconds)
        return EngineStalledError(seconds=seconds) if seconds > limit else None

    @contextmanager
    def receiving(self, command: GenerateCommand | AdapterCommand) -> Iterator[Mailbox]:
        """Receive the replies to a command while this context is entered."""
        mailbox = self._mailboxes[command.id] = Mailbox()
        if isinstance(command, GenerateCommand):
            self._requests[command.id] = command
        try:
            yield mailbox
        finally:
            self._requests.pop(command.id, None)
            del self._mailboxes[command.id]

    async def send(self, command: Command) -> None:
        """Send a command, in a thread: a manager process that hangs would block the event loop.

        A command whose sender no longer waits is sent all the same: an engine that hangs carries it out if it continues.
        """
        await asyncio.shield(asyncio.to_thread(self.put, command, time.monotonic()))

    def put(self, command: Command, sent_at: float) -> None:
        """Send a command. An engine process that was started after ``sent_at`` drops it."""
        with self._putting:
            if self._process != (process := self.state.processes):
                for missed in self._missed():
                    self.queue((sent_at, missed))
                self._process = process
            self.queue((sent_at, command))

    def _note_heartbeat(self) -> None:
        metrics.HEARTBEAT.labels(self.state.device).set_to_current_time()

    def _end_all(self) -> None:
        for mailbox in self._mailboxes.values():
            mailbox.put(ErrorEvent(EngineEndedError()))
