"""Mailboxes of replies to commands, and of messages of engine processes. LitServe fills both kinds alike."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from service.wire.events import AcceptedEvent, PreviewEvent, StepEvent
from service.wire.messages import Heartbeat, Reply

log = logging.getLogger("lithograph")

_HEARTBEATS_KEPT = 20


class Mailbox:
    """Replies to one command. LitServe appends to ``response_queue`` and sets ``event``."""

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
    """The messages of an engine process about itself: heartbeats, and its end."""

    def __init__(self, *, on_heartbeat: Callable[[], None], on_end: Callable[[], None]) -> None:
        self.response_queue = self
        self.event = asyncio.Event()
        self.last_heartbeat = 0.0
        """Time of the last heartbeat, on ``time.monotonic``'s clock."""
        self.steps_left: Mapping[str, int] = {}
        self.adapters: tuple[str, ...] = ()
        self._step_seconds: deque[float] = deque(maxlen=_HEARTBEATS_KEPT)
        self._on_heartbeat = on_heartbeat
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
                self.steps_left, self.adapters = {}, ()
                self._on_end()
            else:
                self.last_heartbeat = time.monotonic()
                self.steps_left, self.adapters = heartbeat.steps_left, heartbeat.adapters
                self._step_seconds.append(heartbeat.step_seconds)
                self._on_heartbeat()
        except Exception:  # any, such as a full disk
            log.exception("a message of an engine process was lost")
