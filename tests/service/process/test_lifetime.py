"""A server from start to end: while it loads, stopped early, without what it needs, and when one of its processes dies."""

import json
import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import httpx
import psutil
import pytest

from tests.conftest import START_SECONDS, run_lithograph, serve, wait_until_ready
from tests.service.family import Family
from tests.service.http.replies import APPLE


def test_http_answers_while_the_model_loads_and_sigterm_ends_every_process(tmp_path: Path) -> None:
    with serve(tmp_path, "--precision", "int8-torchao", "--dtype", "bfloat16", wait=False, cold=True) as server:
        phases = []
        deadline = time.monotonic() + 120
        while (not phases or phases[-1] != "ready") and time.monotonic() < deadline:
            try:
                reply = httpx.get(f"{server.url}/readyz")
            except httpx.TransportError:
                continue
            phases.append(reply.json()["status"])
            assert (reply.status_code == 200) == (phases[-1] == "ready")
            if phases[-1] == "loading":
                early = httpx.post(f"{server.url}/generate", json=APPLE, timeout=60)
                assert early.status_code in (200, 503)
        assert phases[0] == "loading"
        assert phases[-1] == "ready"
        info = httpx.get(f"{server.url}/v1/info", timeout=60).json()["model"]
        assert (info["precision"], info["dtype"]) == ("int8-torchao", "bfloat16")
        assert httpx.post(f"{server.url}/generate", json=APPLE, timeout=60).status_code == 200
        family = psutil.Process(server.process.pid).children(recursive=True)
        assert len(family) >= 3
        assert server.stop() == 0
        _, alive = psutil.wait_procs(family, timeout=60)
        assert not alive
        lines = [line for line in server.log_text().splitlines() if '"request_' not in line]
        assert "starting embedded" in lines[0]
        assert "precision int8-torchao" in lines[0]
        starting, ready = (datetime.fromisoformat(json.loads(line)["time"]) for line in lines[:2])
        (seconds,) = re.findall(r"ready after ([0-9.]+) s:", lines[1])
        assert float(seconds) >= (ready - starting).total_seconds() - 0.1  # of the whole start, not of its last process
        assert "stopped, exit code 0" in lines[-1]
        assert "bfloat16 on cpu" in lines[1]
        assert server.url in lines[1]
        assert not [line for line in lines if "warn" in line.lower() or "Traceback" in line], server.log_text()


def test_a_model_that_cannot_load_ends_the_server_with_one_line_why(tmp_path: Path) -> None:
    with serve(tmp_path, "--offload", "model", wait=False) as server:
        assert server.process.wait(timeout=120) == 1
        assert "use none" in server.log_text()
        assert "Traceback" not in server.log_text()


def test_compile_without_a_compiler_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with serve(tmp_path, "--compile", wait=False) as server:
        assert server.process.wait(timeout=120) == 1
        assert "torch.compile needs a compiler for cpu, and none of g++" in server.log_text()
        assert "Traceback" not in server.log_text()


@pytest.mark.parametrize("seconds", [0.5, 2.0])
def test_a_server_can_be_stopped_while_it_imports(tmp_path: Path, seconds: float) -> None:
    with serve(tmp_path, wait=False, cold=True) as server:
        time.sleep(seconds)
        family = psutil.Process(server.process.pid).children(recursive=True)
        server.stop()
        assert not psutil.wait_procs(family, timeout=60)[1]
        assert "Traceback" not in server.log_text(), server.log_text()
        assert "SIGKILL" not in server.log_text(), server.log_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("seconds", "cold"), [(0.0, False), (0.05, False), (0.1, False), (0.3, False), (0.1, True)])
def test_a_server_can_be_stopped_while_its_processes_start(
    tmp_path: Path, seconds: float, number: signal.Signals, cold: bool
) -> None:
    with serve(tmp_path, wait=False, cold=cold) as server:
        deadline = time.monotonic() + START_SECONDS
        while "starting embedded" not in server.log_text():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(seconds)
        family = Family(server)
        processes = family.all
        os.killpg(server.process.pid, number)
        try:
            assert server.process.wait(timeout=60) == 0
            assert not psutil.wait_procs(processes, timeout=60)[1]
        finally:
            family.kill()
        assert "Traceback" not in server.log_text(), server.log_text()


def test_a_second_signal_ends_a_server_that_drains(tmp_path: Path) -> None:
    with serve(tmp_path) as server, ThreadPoolExecutor(1) as pool:
        processes = Family(server).all
        long = pool.submit(
            httpx.post, f"{server.url}/generate", json=APPLE | {"steps": 100, "num_images": 8}, timeout=120
        )
        deadline = time.monotonic() + START_SECONDS
        while "lithograph_requests_in_progress 1.0" not in httpx.get(f"{server.url}/metrics", timeout=60).text:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(3)  # a signal sooner after the first is taken for its echo
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=60) == 0
        assert not psutil.wait_procs(processes, timeout=60)[1]
        assert isinstance(long.exception(), httpx.TransportError) or long.result().status_code == 503
        assert "Traceback" not in server.log_text(), server.log_text()


def test_ctrl_c_ends_the_server_and_a_taken_port_is_named(tmp_path: Path) -> None:
    with serve(tmp_path) as server:
        port = server.url.rpartition(":")[2]
        second = run_lithograph("serve", "--port", port, cwd=tmp_path)
        assert second.returncode == 1
        problem = "cannot be bound on 127.0.0.1: Address already in use; give another with --port"
        assert f"error: port = {port}: {problem}" in second.stderr
        family = psutil.Process(server.process.pid).children(recursive=True)
        os.killpg(server.process.pid, signal.SIGINT)  # a terminal sends it to the whole group
        assert server.process.wait(timeout=60) == 0
        assert not psutil.wait_procs(family, timeout=60)[1]
        assert "Traceback" not in server.log_text()


def test_of_two_servers_that_start_on_one_port_one_ends(tmp_path: Path) -> None:
    with serve(tmp_path, wait=False) as first:
        port = first.url.rpartition(":")[2]
        with serve(tmp_path, "--port", port, wait=False) as second:
            second.url = first.url
            servers = [first, second]
            deadline = time.monotonic() + START_SECONDS
            while not (ended := [server for server in servers if server.process.poll() is not None]):
                assert time.monotonic() < deadline, [server.log_text() for server in servers]
                time.sleep(0.1)
            (loser,) = ended
            assert loser.process.returncode == 1
            assert f"error: port = {port}: cannot be bound" in loser.log_text()
            assert "Traceback" not in loser.log_text()
            assert "the manager process ended" not in loser.log_text()
            (winner,) = (server for server in servers if server is not loser)
            wait_until_ready(winner)
            assert httpx.post(f"{first.url}/generate", json=APPLE, timeout=60).status_code == 200
            assert winner.stop() == 0


@pytest.mark.parametrize("victim", ["HTTP", "manager"])
def test_a_dead_process_ends_the_server_also_during_a_request(tmp_path: Path, victim: str) -> None:
    with serve(tmp_path) as server, ThreadPoolExecutor(1) as pool:
        family = Family(server)
        processes = {"manager": family.manager, "HTTP": family.http}
        waiting = pool.submit(
            httpx.post, f"{server.url}/generate", json=APPLE | {"steps": 100, "num_images": 8}, timeout=60
        )
        time.sleep(1)
        begin = time.monotonic()
        processes[victim].kill()
        assert server.process.wait(timeout=60) == 1
        assert time.monotonic() - begin < 20
        assert f"the {victim} process ended" in server.log_text()
        assert isinstance(waiting.exception(), httpx.TransportError) or waiting.result().status_code == 500
