"""A hanging process: readiness fails with a reason, every request gets a reply in time, and the server recovers."""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import httpx
import psutil
import pytest

from tests.conftest import RunningServer, serve, wait_until_ready
from tests.service.family import Family
from tests.service.http.replies import metric

APPLE = {"prompt": "a red apple", "seed": 1, "steps": 3}
STALL_SECONDS = 3
PATIENCE_SECONDS = 30
"""Time limit that allows for load on the machine."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("hung")
    (folder / "adapters").mkdir()
    options = ["--adapters", (folder / "adapters").as_uri(), "--stall-seconds", str(STALL_SECONDS)]
    with serve(folder, *options) as running:
        yield running


@pytest.fixture(params=["engine", "manager"])
def hung(server: RunningServer, request: pytest.FixtureRequest) -> Iterator[psutil.Process]:
    """Stop a process, after sending it a request."""
    wait_until_ready(server)
    process: psutil.Process = getattr(Family(server), request.param)
    process.suspend()
    try:
        yield process
    finally:
        process.resume()


def wait_until_stalled(client: httpx.Client) -> str:
    begin = time.monotonic()
    while (reply := client.get("/readyz")).status_code == 200:
        assert time.monotonic() - begin < PATIENCE_SECONDS
        time.sleep(0.1)
    assert reply.json()["status"] == "stalled"
    return str(reply.json()["reason"])


def asked(pool: ThreadPoolExecutor, client: httpx.Client) -> list[Future[httpx.Response]]:
    """Send a request of each kind that needs the engine."""
    body = APPLE | {"timeout_seconds": 2}
    return [
        pool.submit(client.get, "/v1/adapters"),
        pool.submit(client.get, "/v1/models"),
        pool.submit(client.post, "/v1/adapters/ink/load"),
        pool.submit(client.post, "/generate", json=body),
        pool.submit(client.post, "/generate", json=body | {"stream": True}),
    ]


def test_questions_to_a_process_that_hangs_are_answered_in_time(server: RunningServer, hung: psutil.Process) -> None:
    with httpx.Client(base_url=server.url, timeout=60) as client, ThreadPoolExecutor(8) as pool:
        before = asked(pool, client)
        assert "no progress for" in wait_until_stalled(client)
        assert client.get("/healthz").status_code == 200
        assert client.get("/v1/info").json()["status"] == "stalled"
        assert [reply.result().status_code for reply in before] == [503, 503, 503, 504, 504]
        assert before[0].result().json()["error"]["code"] == "engine_stalled"
        assert "timeout" in before[4].result().text
        begin = time.monotonic()
        for reply in (one.result() for one in asked(pool, client)):
            assert (reply.status_code, reply.json()["error"]["code"]) == (503, "engine_stalled")
            assert int(reply.headers["retry-after"]) >= 1
        assert time.monotonic() - begin < PATIENCE_SECONDS
        assert metric(client, "lithograph_engine_heartbeat_timestamp_seconds") < time.time() - STALL_SECONDS
        hung.resume()
        wait_until_ready(server)
        assert client.post("/generate", json=APPLE).status_code == 200
        assert client.get("/v1/adapters").status_code == 200


def test_an_idle_engine_and_one_that_generates_stay_ready(server: RunningServer) -> None:
    wait_until_ready(server)
    with httpx.Client(base_url=server.url, timeout=120) as client, ThreadPoolExecutor(1) as pool:
        busy = pool.submit(client.post, "/generate", json=APPLE | {"steps": 60, "num_images": 4})
        begin = time.monotonic()
        while time.monotonic() - begin < 2 * STALL_SECONDS or not busy.done():
            assert client.get("/readyz").status_code == 200
            time.sleep(0.1)
        assert busy.result().status_code == 200
