"""The supervisor, in the main process: it drains on SIGTERM and watches the other processes."""

import functools
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

from service.config import ServiceConfig
from service.http.exchange.exchange import Exchange
from service.observability import exposition, metrics
from service.wire.state import EngineState, ServicePhase, ServiceState

log = logging.getLogger("lithograph")

_MAX_RESTARTS = 3
_RESTART_WINDOW_SECONDS = 300.0
"""An engine process that ends more often than that would end again: the server stops, and its own supervisor decides."""
_START_SECONDS = 10.0
"""Time in which an engine process must be started, and time for the others before a signal interrupts their start."""
_PAUSE_SECONDS = 0.1
_ECHO_SECONDS = 2.0
"""A SIGTERM to all processes of a server reaches the main process several times: its children pass theirs on."""


class Supervisor:
    """The shutdown of a server, and the end of its processes."""

    def __init__(self, config: ServiceConfig, state: ServiceState, exchange: Exchange) -> None:
        self.exit_code = 0
        self.is_stopping = False
        self.is_hurried = False
        """True once waiting for open requests is pointless: their time is up, or a process that they need has ended."""
        self._config = config
        self._state = state
        self._exchange = exchange
        self._engines_left = len(state.engines)
        metrics.ENGINES.set(self._engines_left)
        self._counting = threading.Lock()
        self._main = os.getpid()
        self._signalled: float | None = None
        """Time of the first signal to stop, by the monotonic clock."""
        self._has_passed_on = False
        """True once the HTTP process has passed a signal on."""
        self._may_end = False
        """True once the drain is over, or useless: the next signal ends the main process."""
        self.has_started = threading.Event()
        """Set once LitServe waits for the server's end. An interrupt of its start would leave processes that it awaits."""
        self.http_has_started = multiprocessing.Event()
        """Set by the HTTP process once it ends at SIGTERM."""

    def handle_signals(self) -> None:
        """Drain on SIGTERM and Ctrl-C; LitServe itself would end and leave its processes behind."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def pass_signals_on(self) -> None:
        """In the HTTP process, leave it to the main process when to end: uvicorn would close its port and wait for a while.

        A signal to all processes of a server comes before requests have drained. uvicorn's own handlers, which must be set
        by now, get the signals of the main process.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, functools.partial(self._on_http_signal, signal.getsignal(number)))

    def _on_http_signal(self, uvicorns: Any, number: int, frame: FrameType | None) -> None:
        if self._state.phase is ServicePhase.STOPPING:
            uvicorns(number, frame)
        elif not self._has_passed_on:
            self._has_passed_on = True
            os.kill(self._main, signal.SIGTERM)

    def _on_signal(self, *_: object) -> None:
        # The forked HTTP process inherits this handler. uvicorn replaces it, but raises its signal again when it is done.
        if os.getpid() != self._main:
            return
        if self.is_stopping:
            is_echo = self._signalled is not None and time.monotonic() - self._signalled < _ECHO_SECONDS
            if is_echo and not self._may_end:
                return
            self.is_hurried = self.is_hurried or not self._may_end
            self._may_end = True
            raise KeyboardInterrupt  # the drain is over, or the operator has asked twice
        self.is_stopping = True
        self._signalled = time.monotonic()
        threading.Thread(target=self._drain, daemon=True, name="drain").start()

    def _drain(self) -> None:
        """Let clients move on, stop admitting requests, wait for those under way, then stop the server."""
        config, state = self._config, self._state
        if config.linger_seconds and state.phase is ServicePhase.READY:
            state.set_shutdown(ServicePhase.LINGERING)
            log.info("shutting down: requests are accepted for %g s more", config.linger_seconds)
            time.sleep(config.linger_seconds)
        begin = time.monotonic()
        state.set_shutdown(ServicePhase.DRAINING)
        log.info(
            "shutting down: no request is admitted; %d unfinished requests may take %g s more",
            self._exchange.unfinished,
            config.grace_seconds,
        )
        while self._exchange.unfinished and time.monotonic() - begin < config.grace_seconds:
            time.sleep(0.05)
        if unfinished := self._exchange.unfinished:
            log.warning("%d requests are not finished after %g s; stopping anyway", unfinished, config.grace_seconds)
            self.is_hurried = True
        self.has_started.wait(_START_SECONDS)
        self.http_has_started.wait(_START_SECONDS)
        self._may_end = True
        os.kill(self._main, signal.SIGTERM)

    def fail(self, process: str) -> None:
        """Record the end of a process that the server needs, and stop."""
        self.is_stopping = self.is_hurried = self._may_end = True
        self.exit_code = 1
        log.error("the %s process ended; stopping", process)

    def watch(self, processes: Mapping[str, BaseProcess]) -> None:
        """Wait until one of the processes ends, and stop the server. Runs in a thread of its own."""
        # Not join(): of two threads that wait for one child, the one that loses the race for its exit status counts it as
        # alive.
        names = {process.sentinel: name for name, process in processes.items()}
        (ended, *_) = multiprocessing.connection.wait(list(names))
        assert isinstance(ended, int)
        self._stop_after(names[ended])

    def run_engine(self, state: EngineState, start: Callable[[], BaseProcess], on_end: Callable[[], None]) -> None:
        """Start the process of one engine, and again when it ends, unless another would be useless.

        Stops the server after the last engine. Runs in a thread of its own, which ends with the server: on Linux, an engine
        process, or a fork server started again, ends with the thread that started it. ``on_end`` is called after the end
        of each process.
        """
        ends = EngineEnds(state)
        while not self.is_stopping:
            try:
                engine = self._started(start)
            except (OSError, EOFError):
                if not self.is_stopping:  # else the signal to stop has reached the fork server, too
                    log.exception("the engine process of %s cannot be started", state.device)
                    state.begin(ServicePhase.FAILED)
                break
            multiprocessing.connection.wait([engine.sentinel])
            if self._may_end:  # the server's own end: its metrics may be removed already
                return
            assert engine.pid is not None
            exposition.process_ended(engine.pid)
            may_restart = ends.note()  # before its requests are answered: no other is to be sent meanwhile
            on_end()
            if self.is_stopping or not may_restart:
                break
            metrics.ENGINE_RESTARTS.labels(state.device).inc()
            log.error("the engine process of %s ended; starting it again", state.device)
        with self._counting:
            self._engines_left -= 1
        if not self._engines_left:
            self._stop_after("engine")
        elif not self.is_stopping:
            log.error("the server continues without %s", state.device)
            threading.Event().wait()

    def _started(self, start: Callable[[], BaseProcess]) -> BaseProcess:
        """Start an engine process. Raises ``OSError`` or ``EOFError``.

        A killed fork server takes connections until its last thread has ended, and closes them without a reply.
        """
        begin = time.monotonic()
        while True:
            try:
                return start()
            except (OSError, EOFError):
                if self.is_stopping or time.monotonic() - begin > _START_SECONDS:
                    raise
            time.sleep(_PAUSE_SECONDS)

    def _stop_after(self, process: str) -> None:
        """Stop the server because a process has ended, unless it is stopping already."""
        if not self.is_stopping:
            self.fail(process)
            os.kill(self._main, signal.SIGTERM)


class EngineEnds:
    """The ends of the processes of one engine."""

    def __init__(self, state: EngineState) -> None:
        self._state = state
        self._restarts: deque[float] = deque(maxlen=_MAX_RESTARTS)
        self._has_been_ready = False

    def note(self) -> bool:
        """Note the end of a process, in the engine's phase too; return False if another would be useless."""
        state, now = self._state, time.monotonic()
        self._has_been_ready |= state.runs
        if state.phase is ServicePhase.FAILED or not self._has_been_ready:
            state.begin(ServicePhase.FAILED)
            return False
        if len(self._restarts) == _MAX_RESTARTS and now - self._restarts[0] < _RESTART_WINDOW_SECONDS:
            log.error(
                "the engine process of %s ended %d times in %.0f s",
                state.device,
                _MAX_RESTARTS + 1,
                now - self._restarts[0],
            )
            state.begin(ServicePhase.FAILED)
            return False
        state.begin(ServicePhase.RESTARTING)
        self._restarts.append(now)
        return True
