"""The service under many requests: streaming, deadlines, backpressure, disconnects, drain, restart."""

import base64
import json
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from tests.conftest import RunningServer, serve, wait_until_ready
from tests.service.family import Family
from tests.service.http.replies import metric

LONG = {"prompt": "a cat", "seed": 1, "steps": 100, "num_images": 8}
LONG_STEPS = 100  # at least: pictures can share them
APPLE = {"prompt": "a red apple", "seed": 1, "steps": 3}


def events(reply: httpx.Response) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield server-sent events as they come: name and data."""
    name = ""
    for line in reply.iter_lines():
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield name, json.loads(value)


def steps_made(client: httpx.Client) -> float:
    return metric(client, "lithograph_step_seconds_count")


def wait_for_steps(client: httpx.Client, more_than: float) -> None:
    deadline = time.monotonic() + 120
    while steps_made(client) <= more_than:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait_until_not_ready(client: httpx.Client) -> str:
    """Wait until ``/readyz`` no longer answers 200, and return its reply."""
    deadline = time.monotonic() + 60
    while (reply := client.get("/readyz")).status_code == 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return str(reply.json()["status"])


def assert_stopped_early(client: httpx.Client, since: float) -> None:
    """Assert that a second passes without a step before ``LONG``, begun at step ``since``, has made all of its own."""
    deadline = time.monotonic() + 120
    seen = -1.0
    while metric(client, "lithograph_active_rows") or steps_made(client) != seen:
        assert time.monotonic() < deadline
        seen = steps_made(client)
        time.sleep(1)
    assert seen - since < LONG_STEPS


def test_requests_together_give_the_bytes_that_each_gives_alone(client: httpx.Client) -> None:
    bodies = [
        {
            "prompt": prompt,
            "seed": i,
            "steps": 2 + i,
            "guidance_scale": 1 + i / 2,
            "width": 64 * (1 + i % 2),
            "height": 64,
        }
        for i, prompt in enumerate(["一只猫", "a red apple", "a car", "dog", "苹果", "a blue bird"])
    ]
    alone = [client.post("/generate", json=body).content for body in bodies]
    with ThreadPoolExecutor(len(bodies)) as pool:
        together = list(pool.map(lambda body: client.post("/generate", json=body).content, bodies))
    assert together == alone


def test_a_stream_has_every_step_and_ends_with_the_picture_of_a_plain_request(client: httpx.Client) -> None:
    with client.stream("POST", "/generate", json=APPLE | {"stream": True, "previews": True, "num_images": 2}) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        heard = list(events(reply))
    progress = [data for name, data in heard if name == "progress"]
    assert sorted((p["image"], p["step"]) for p in progress) == [(i, s) for i in (0, 1) for s in (1, 2, 3)]
    previews = [data for name, data in heard if name == "preview"]
    assert {data["image"] for data in previews} == {0, 1}
    assert base64.b64decode(str(previews[0]["b64"])).startswith(b"\xff\xd8\xff")
    assert heard[-1][0] == "result"
    images = heard[-1][1]["images"]
    assert isinstance(images, list)
    assert base64.b64decode(images[0]["b64"]) == client.post("/generate", json=APPLE).content


def test_past_its_timeout_a_request_gets_504_and_costs_no_more_steps(client: httpx.Client) -> None:
    begin, made = time.monotonic(), steps_made(client)
    reply = client.post("/generate", json=LONG | {"timeout_seconds": 0.5})
    assert time.monotonic() - begin < 20  # it would take a minute to generate
    assert reply.status_code == 504
    assert reply.json()["error"]["code"] == "timeout"
    assert_stopped_early(client, made)
    with client.stream("POST", "/generate", json=LONG | {"timeout_seconds": 0.5, "stream": True}) as stream:
        name, data = list(events(stream))[-1]
    assert name == "error"
    assert data["error"]["code"] == "timeout"


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_whose_client_disconnects_makes_no_more_steps(client: httpx.Client, stream: bool) -> None:
    before = steps_made(client)
    cancelled = metric(client, "lithograph_cancelled_requests_total")
    body = json.dumps(LONG | {"stream": stream}).encode()
    with socket.create_connection((client.base_url.host, client.base_url.port)) as connection:
        connection.sendall(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        wait_for_steps(client, before + 3)
    assert_stopped_early(client, before)
    assert metric(client, "lithograph_cancelled_requests_total") == cancelled + 1
    assert client.post("/generate", json=APPLE).status_code == 200


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with serve(tmp_path_factory.mktemp("small"), "--max-queue", "2") as running:
        yield running


def test_a_full_queue_is_answered_429_with_retry_after(small: RunningServer) -> None:
    with httpx.Client(base_url=small.url, timeout=60) as client, ThreadPoolExecutor(2) as pool:
        assert client.post("/generate", json=APPLE).status_code == 200  # so that the server knows the duration of steps
        taken = [pool.submit(client.post, "/generate", json=LONG | {"timeout_seconds": 4}) for _ in range(2)]
        deadline = time.monotonic() + 60
        while metric(client, "lithograph_requests_in_progress") < 2:
            assert time.monotonic() < deadline
        reply = client.post("/generate", json=APPLE)
        assert reply.status_code == 429
        assert reply.json()["error"]["code"] == "busy"
        assert 2 <= int(reply.headers["retry-after"]) < 300
        assert [t.result().status_code for t in taken] == [504, 504]
        assert client.post("/generate", json=APPLE).status_code == 200


def test_when_the_engine_dies_requests_get_503_at_once_and_it_is_restarted(small: RunningServer) -> None:
    with httpx.Client(base_url=small.url, timeout=60) as client, ThreadPoolExecutor(2) as pool:
        expected = client.post("/generate", json=APPLE).content
        bodies = [LONG, LONG | {"stream": True}]
        under_way = [pool.submit(client.post, "/generate", json=body) for body in bodies]
        wait_for_steps(client, steps_made(client))
        Family(small).engine.kill()
        begin = time.monotonic()
        plain, stream = (request.result() for request in under_way)
        assert time.monotonic() - begin < 20  # without the supervisor they would hang
        assert (plain.status_code, plain.json()["error"]["code"]) == (503, "engine_ended")
        assert list(events(stream))[-1][1]["error"]["code"] == "engine_ended"
        wait_until_ready(small)
        assert client.post("/generate", json=APPLE).content == expected
        assert metric(client, "lithograph_engine_restarts_total") == 1
        assert metric(client, "lithograph_ready") == 1


def test_sigterm_lets_requests_finish_takes_no_more_and_leaves_no_process(tmp_path: Path) -> None:
    with (
        serve(tmp_path) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        family = psutil.Process(server.process.pid).children(recursive=True)
        finishing = pool.submit(client.post, "/generate", json=APPLE | {"steps": 60})
        wait_for_steps(client, steps_made(client))
        server.process.send_signal(signal.SIGTERM)
        assert wait_until_not_ready(client) == "draining"
        assert client.get("/healthz").status_code == 200
        refused = client.post("/generate", json=APPLE)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert "retry-after" in refused.headers
        assert finishing.result().status_code == 200
        assert server.process.wait(timeout=120) == 0
        assert not psutil.wait_procs(family, timeout=60)[1]


def test_a_server_that_lingers_takes_requests_and_sends_connections_away(tmp_path: Path) -> None:
    with serve(tmp_path, "--linger-seconds", "5") as server, httpx.Client(base_url=server.url, timeout=60) as client:
        assert "connection" not in client.post("/generate", json=APPLE).headers
        server.process.send_signal(signal.SIGTERM)
        assert wait_until_not_ready(client) == "lingering"
        taken = client.post("/generate", json=APPLE)
        assert (taken.status_code, taken.headers["connection"]) == (200, "close")
        assert server.process.wait(timeout=60) == 0


def test_after_the_grace_period_the_server_stops_whatever_is_under_way(tmp_path: Path) -> None:
    with serve(tmp_path, "--grace-seconds", "1") as server, ThreadPoolExecutor(1) as pool:
        family = psutil.Process(server.process.pid).children(recursive=True)
        with httpx.Client(base_url=server.url, timeout=60) as client:
            cut = pool.submit(httpx.post, f"{server.url}/generate", json=LONG, timeout=60)
            wait_for_steps(client, steps_made(client))
        assert server.stop() == 0
        assert isinstance(cut.exception(), httpx.TransportError) or cut.result().status_code >= 500
        assert not psutil.wait_procs(family, timeout=60)[1]
        assert "1 requests are not finished after 1 s" in server.log_text()
