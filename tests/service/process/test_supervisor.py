"""The supervisor starts the engine process, also while the old fork server is still ending."""

import os
import signal
import subprocess
import threading
from multiprocessing.process import BaseProcess

import pytest

from service.config import ModelConfig, ServiceConfig
from service.http.exchange.exchange import Exchange
from service.observability import exposition
from service.process import supervisor as module
from service.process.engine_start import engine_context
from service.process.supervisor import Supervisor
from service.wire.state import ServicePhase, ServiceState


@pytest.fixture
def state() -> ServiceState:
    return ServiceState(["cpu"])


@pytest.fixture
def supervisor(state: ServiceState, monkeypatch: pytest.MonkeyPatch) -> Supervisor:
    monkeypatch.setattr(exposition, "process_ended", lambda _pid: None)  # this process has no directory of metrics
    exchange = Exchange({}, state, max_requests=1, pictures_at_a_time=1, stall_seconds=10)
    return Supervisor(ServiceConfig(model=ModelConfig(flavour="embedded")), state, exchange)


class Starts:
    """Starts processes that end at once. Some starts fail before, as on a fork server that is ending."""

    def __init__(self, *errors: type[Exception]) -> None:
        self.errors = list(errors)
        self.started: list[BaseProcess] = []

    def __call__(self) -> BaseProcess:
        """Start one, or fail."""
        if self.errors:
            raise self.errors.pop()
        process = engine_context("cuda").Process(target=subprocess.list2cmdline, args=([],))
        process.start()
        self.started.append(process)
        return process


def test_a_start_is_tried_again_while_the_fork_server_ends(supervisor: Supervisor, state: ServiceState) -> None:
    starts = Starts(EOFError, ConnectionRefusedError, ConnectionResetError)
    ends = 0

    def on_end() -> None:
        nonlocal ends
        ends += 1
        supervisor.is_stopping = ends == 2

    state.engines[0].begin(ServicePhase.READY)
    supervisor.run_engine(state.engines[0], starts, on_end)
    assert (len(starts.started), starts.errors) == (2, [])
    assert supervisor.exit_code == 0


def test_a_start_that_goes_on_failing_stops_the_server(
    supervisor: Supervisor, state: ServiceState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_START_SECONDS", 0.2)
    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda _pid, number: killed.append(number))
    supervisor.run_engine(state.engines[0], Starts(*[ConnectionRefusedError] * 100), lambda: None)
    assert supervisor.exit_code == 1
    assert killed == [signal.SIGTERM]


def test_the_server_continues_until_its_last_engine_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposition, "process_ended", lambda _pid: None)
    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda _pid, number: killed.append(number))
    state = ServiceState(["cuda:0", "cuda:1"])
    exchange = Exchange({}, state, max_requests=1, pictures_at_a_time=1, stall_seconds=10)
    supervisor = Supervisor(ServiceConfig(model=ModelConfig(flavour="embedded")), state, exchange)
    first, second = state.engines

    ended = threading.Event()
    begin = first.begin

    def note(phase: ServicePhase) -> None:
        begin(phase)
        ended.set()

    monkeypatch.setattr(first, "begin", note)
    threading.Thread(target=supervisor.run_engine, args=(first, Starts(), lambda: None), daemon=True).start()
    assert ended.wait(60)
    assert first.phase is ServicePhase.FAILED  # its only process ended before it was ready
    assert (killed, supervisor.is_stopping) == ([], False)

    second.begin(ServicePhase.READY)
    assert state.phase is ServicePhase.READY
    starts = Starts()
    supervisor.run_engine(second, starts, lambda: None)
    assert len(starts.started) == 1 + module._MAX_RESTARTS  # a limit of its own
    assert second.phase is ServicePhase.FAILED
    assert (killed, supervisor.exit_code) == ([signal.SIGTERM], 1)
