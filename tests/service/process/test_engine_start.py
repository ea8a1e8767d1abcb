"""The start of an engine process: by device, during Ctrl-C, and during a stop."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

from longcat.model.flavour import Flavour
from service.config import ModelConfig, ServiceConfig
from service.http.exchange.exchange import Exchange
from service.process import engine_start
from service.process import server as server_module
from service.process.engine_start import engine_context, see_only
from service.process.server import GenerateAPI, Server
from service.process.supervisor import Supervisor
from tests import ROOT
from tests.conftest import START_SECONDS, RunningServer, serve
from tests.service.family import Family
from tests.service.http.replies import metric

SECONDS = 60


@pytest.mark.parametrize(
    ("device", "gpu_files", "method"),
    [
        ("cpu", ("/dev/null",), "forkserver"),
        ("auto", (), "forkserver"),
        ("auto", ("/nowhere", "/dev/null"), "spawn"),
        ("cuda", (), "spawn"),
        ("cuda:1", (), "spawn"),
        ("mps", (), "spawn"),
    ],
)
def test_an_engine_is_forked_only_where_no_gpu_can_compute(
    monkeypatch: pytest.MonkeyPatch, device: str, gpu_files: tuple[str, ...], method: str
) -> None:
    monkeypatch.setattr(engine_start, "_GPU_FILES", gpu_files)
    expected = method if sys.platform == "linux" else "spawn"
    assert engine_context(device).get_start_method() == expected


@pytest.mark.parametrize(
    ("device", "visible", "own", "seen"),
    [
        ("cpu", None, "cpu", None),
        ("auto", "0,1", "auto", "0,1"),
        ("cuda", "0,1", "cuda", "0,1"),
        ("cuda:0", None, "cuda:0", "0"),
        ("cuda:3", None, "cuda:0", "3"),
        ("cuda:1", "4,6", "cuda:0", "6"),
        ("cuda:1", "MIG-a, MIG-b", "cuda:0", "MIG-b"),
        ("cuda:2", "4,6", "cuda:2", "4,6"),
        ("cuda:1", "", "cuda:0", "1"),
    ],
)
def test_an_engine_process_sees_its_gpu_alone(
    monkeypatch: pytest.MonkeyPatch, device: str, visible: str | None, own: str, seen: str | None
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "unset")  # so that it is restored
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert see_only(device) == own
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == seen


def test_ctrl_c_does_not_reach_a_fork_server_that_imports(tmp_path: Path) -> None:
    with serve(tmp_path, wait=False, cold=True) as server:
        fork_server = started_fork_server(server)
        deadline = time.monotonic() + START_SECONDS
        while not fork_server.children():  # it forks once all is imported
            fork_server.send_signal(signal.SIGINT)
            assert time.monotonic() < deadline, server.log_text()
            time.sleep(0.05)
        fork_server.send_signal(signal.SIGINT)
        with httpx.Client(base_url=server.url, timeout=60) as client:
            while client.get("/readyz").status_code != 200:
                assert time.monotonic() < deadline, server.log_text()
                time.sleep(0.1)
            assert metric(client, "lithograph_engine_restarts_total") == 0
        assert Family(server).fork_server == fork_server
        assert server.stop() == 0
        assert "Traceback" not in server.log_text(), server.log_text()


def started_fork_server(server: RunningServer) -> psutil.Process:
    """Wait for the fork server, and return it while it still imports."""
    family = Family(server)
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            return family.fork_server
        except ValueError:  # there is none yet
            assert time.monotonic() < deadline, server.log_text()
            time.sleep(0.01)


@pytest.mark.parametrize("is_stopping", [True, False])
def test_an_engine_process_that_starts_during_a_stop_is_killed(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch, is_stopping: bool
) -> None:
    monkeypatch.setattr(engine_start, "_GPU_FILES", ("/dev/null",))  # spawned: a fork server would outlive this test
    monkeypatch.setattr(server_module, "inference_worker", run_on)
    config = ServiceConfig(model=ModelConfig(flavour="embedded"))
    server = Server.__new__(Server)
    server._api = GenerateAPI(config, flavour, config.limits(flavour))
    exchange = Exchange({}, server._api.state, max_requests=1, pictures_at_a_time=1, stall_seconds=10)
    server._supervisor = Supervisor(config, server._api.state, exchange)
    server._supervisor.is_stopping = is_stopping
    server._engines, server.inference_workers, server._command_queues = {}, [], [None]
    server._transport = server.workers_setup_status = server._callback_runner = server.restart_workers = None
    process = server.launch_single_inference_worker(server._api, 0)
    process.join(SECONDS if is_stopping else 2)
    code = process.exitcode
    process.kill()
    process.join(SECONDS)
    assert code == (-signal.SIGKILL if is_stopping else None)


def run_on(*_: object) -> None:
    """Stand for an engine: it ends by itself only after this test."""
    time.sleep(2 * SECONDS)


@pytest.mark.skipif(sys.platform != "linux", reason="engine processes are forked on Linux alone")
@pytest.mark.parametrize(("devices", "servers"), [(["cpu", "cpu"], 1), (["cuda:0", "cpu"], 1), (["cuda:0"], 0)])
def test_imports_begin_in_one_fork_server_if_an_engine_is_forked(devices: list[str], servers: int) -> None:
    code = (
        "import psutil\n"
        "from service.process.engine_start import begin_imports\n"
        f"begin_imports({devices})\n"
        "print(sum('forkserver' in ' '.join(child.cmdline()) for child in psutil.Process().children()))"
    )
    assert int(subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)) == servers
