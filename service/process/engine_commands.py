"""The commands to an engine process, read by one thread, which no command may end or block."""

import functools
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from longcat.errors import LithographError
from service.wire.errors import wrapped
from service.wire.events import ErrorEvent
from service.wire.messages import (
    AdapterAction,
    AdapterCommand,
    CancelCommand,
    Command,
    GenerateCommand,
    Heartbeat,
    Reply,
)

if TYPE_CHECKING:
    from service.renderer import Renderer

log = logging.getLogger("lithograph")

Receive = Callable[[], tuple[float, Command]]
"""Waits for the next command: the time at which it was sent, on ``time.monotonic``'s clock, and the command."""
Send = Callable[[str, Reply | Heartbeat], None]
"""Sends a reply to the mailbox of that id. Called from any thread."""

_WAITING_AT_ONCE = 16
"""Commands about adapters that wait for storage. Without a limit, a storage that hangs would use up the threads."""
_LISTS_AT_ONCE = 2


class EngineCommands:
    """Reads commands and has the renderer carry them out."""

    def __init__(self, renderer: "Renderer", send: Send, *, started: float) -> None:
        """Commands from before ``started`` were sent to an engine process that has ended: they are dropped."""
        self._renderer, self._send, self._started = renderer, send, started
        self._waiting = ThreadPoolExecutor(_WAITING_AT_ONCE, "adapter-commands")
        self._lists = ThreadPoolExecutor(_LISTS_AT_ONCE, "adapter-lists")  # these need no storage

    def run(self, receive: Receive) -> None:
        """Carry out commands until the manager process, which has them, ends: the server ends with it."""
        try:
            while True:
                try:
                    sent_at, command = receive()
                except (EOFError, OSError):
                    return
                if sent_at > self._started:
                    self.carry_out(command, functools.partial(self._send, command.id))
        except BaseException:  # any: an engine process that reads no commands looks healthy, and another would be
            log.exception("reading commands failed; ending the engine process")
            os._exit(1)

    def carry_out(self, command: Command, reply: Callable[[Reply], None]) -> None:
        """Carry out a command. An error becomes its reply."""
        try:
            match command:
                case GenerateCommand():
                    self._renderer.submit(command, reply)
                case CancelCommand():
                    self._renderer.cancel(command.id)
                case AdapterCommand():  # may wait for storage, and requests must not
                    pool = self._lists if command.action is AdapterAction.LIST else self._waiting
                    pool.submit(self._manage, command, reply)
        except Exception as error:  # any: other requests' commands come after it
            log.error("command %s failed", command.id, exc_info=error)
            reply(ErrorEvent(wrapped(error)))

    def _manage(self, command: AdapterCommand, reply: Callable[[Reply], None]) -> None:
        if time.monotonic() > command.deadline:  # its deadline has passed: no client waits for it
            return
        try:
            reply(self._renderer.manage(command))
        except Exception as error:  # any: the HTTP process waits for a reply in any case
            if not isinstance(error, LithographError):
                log.error("adapter command %s failed", command.id, exc_info=error)
            reply(ErrorEvent(wrapped(error)))
