"""Ends of processes: after any is killed or stopped, none is left, and a restart on the same port works at once."""

import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.managers import SyncManager
from pathlib import Path

import httpx
import psutil
import pytest
from litserve.transport.process_transport import MPQueueTransport

from service.process.server import Server
from tests.conftest import START_SECONDS, RunningServer, serve, wait_until_ready
from tests.service.family import Family
from tests.service.http.replies import metric
from tests.service.test_serving import LONG, steps_made, wait_for_steps

SECONDS = 60
RECOVERY_SECONDS = 8


@pytest.fixture
def starting(tmp_path: Path) -> Iterator[RunningServer]:
    """Return a server that answers while it loads its model."""
    with serve(tmp_path, wait=False) as server:
        wait_until_alive(server.url)
        family = Family(server)
        yield server
        family.kill()  # only this test's processes: other files share a server and an S3 server


@pytest.fixture
def running(starting: RunningServer) -> RunningServer:
    wait_until_ready(starting)
    return starting


def wait_until_alive(url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        with suppress(httpx.TransportError):
            assert httpx.get(f"{url}/healthz").status_code == 200
            return
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("name", ["main", "http", "manager"])
def test_no_process_is_left(starting: RunningServer, name: str, number: signal.Signals) -> None:
    family = Family(starting)
    processes = family.all
    getattr(family, name).send_signal(number)
    code = starting.process.wait(SECONDS)
    assert not psutil.wait_procs(processes, timeout=SECONDS)[1]
    assert code == (0 if number is signal.SIGTERM else -signal.SIGKILL if name == "main" else 1)


def test_a_killed_server_leaves_no_process_even_if_one_is_stopped_and_its_port_is_free(
    running: RunningServer, tmp_path: Path
) -> None:
    family = Family(running)
    processes = family.all
    family.engine.suspend()
    family.main.kill()
    with serve(tmp_path, "--port", running.url.rpartition(":")[2], wait=False):
        wait_until_alive(running.url)
    assert not psutil.wait_procs(processes, timeout=SECONDS)[1]


def test_a_killed_server_leaves_one_directory_which_the_next_removes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as short:  # tmp_path is too long for the sockets of a server
        monkeypatch.setenv("TMPDIR", short)
        with serve(tmp_path, wait=False) as server:
            wait_until_alive(server.url)
            processes = Family(server).all
            server.process.kill()
            assert not psutil.wait_procs(processes, timeout=SECONDS)[1]
        (left,) = Path(short).glob("lithograph-run-*")
        assert left.is_dir()
        assert not list(Path(short).glob("pymp-*"))
        os.utime(left, (time.time() - 60,) * 2)  # else it could be one that is being made
        with serve(tmp_path, wait=False) as server:
            wait_until_alive(server.url)
            assert not left.exists()
            assert server.stop() == 0
        assert not list(Path(short).glob("lithograph-run-*"))


@pytest.mark.parametrize("told", [lambda family: [family.engine], lambda family: family.all])
def test_sigterm_to_a_child_or_to_all_lets_requests_finish(
    running: RunningServer, told: Callable[[Family], list[psutil.Process]]
) -> None:
    family = Family(running)
    processes = family.all
    with httpx.Client(base_url=running.url, timeout=60) as client, ThreadPoolExecutor(1) as pool:
        finishing = pool.submit(client.post, "/generate", json=LONG | {"num_images": 1})
        wait_for_steps(client, steps_made(client))
        for process in told(family):
            process.terminate()
        time.sleep(0.3)
        assert not finishing.done()
        assert httpx.get(f"{running.url}/healthz").status_code == 200  # uvicorn itself would have closed its port
        assert finishing.result().status_code == 200
    assert running.process.wait(SECONDS) in (0, 1)
    assert not psutil.wait_procs(processes, timeout=SECONDS)[1]


@pytest.mark.parametrize("name", ["engine", "fork_server"])
def test_a_killed_engine_or_fork_server_is_replaced_within_seconds(running: RunningServer, name: str) -> None:
    with httpx.Client(base_url=running.url, timeout=60) as client:
        getattr(Family(running), name).kill()
        begin = time.monotonic()
        while client.get("/readyz").status_code == 200:
            assert time.monotonic() - begin < SECONDS
        wait_until_ready(running)
        if name == "engine":
            assert time.monotonic() - begin < RECOVERY_SECONDS
        assert metric(client, "lithograph_engine_restarts_total") == 1


def test_an_engine_process_that_ends_after_the_manager_process_is_no_error() -> None:
    server = Server.__new__(Server)
    with SyncManager() as manager:
        server._transport = MPQueueTransport(manager, [manager.Queue()])
        server._transport.send(("engine 0", None), consumer_id=0)  # opens the connection that then breaks
        server._command_queues = [manager.Queue()]
    server._after_engine(0)
