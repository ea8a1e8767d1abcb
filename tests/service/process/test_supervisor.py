"""The supervisor starts the engine process, also while the old fork server is still ending."""

import os
import signal
import subprocess
from multiprocessing.process import BaseProcess

import pytest

from service.config import ModelConfig, ServiceConfig
from service.http.exchange import Exchange
from service.observability import metrics
from service.process import supervisor as module
from service.process.engine_start import engine_context
from service.process.supervisor import Supervisor
from service.wire.state import ServicePhase, ServiceState


@pytest.fixture
def state() -> ServiceState:
    return ServiceState()


@pytest.fixture
def supervisor(state: ServiceState, monkeypatch: pytest.MonkeyPatch) -> Supervisor:
    monkeypatch.setattr(metrics, "process_ended", lambda _pid: None)  # this process has no directory of metrics
    return Supervisor(
        ServiceConfig(model=ModelConfig(flavour="embedded")), state, Exchange({}, max_requests=1, pictures_at_a_time=1)
    )


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

    state.set_engine(ServicePhase.READY)
    supervisor.run_engine(starts, on_end)
    assert (len(starts.started), starts.errors) == (2, [])
    assert supervisor.exit_code == 0


def test_a_start_that_goes_on_failing_stops_the_server(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_START_SECONDS", 0.2)
    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda _pid, number: killed.append(number))
    supervisor.run_engine(Starts(*[ConnectionRefusedError] * 100), lambda: None)
    assert supervisor.exit_code == 1
    assert killed == [signal.SIGTERM]
