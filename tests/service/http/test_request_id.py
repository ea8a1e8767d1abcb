"""Every reply carries its request id, and an error's body repeats it."""

import json
import logging
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from service.http.edge.context import ErrorReplies, RequestContext
from service.http.error_responses import reply_to_error
from tests.conftest import RunningServer

ID = re.compile(r"[A-Za-z0-9-]{8,}")


@pytest.mark.parametrize(
    ("method", "path", "request_fields", "status"),
    [
        ("GET", "/healthz", {}, 200),
        ("GET", "/nowhere", {}, 404),
        ("DELETE", "/generate", {}, 405),
        ("POST", "/generate", {"content": b"{"}, 400),
        ("POST", "/v1/tokens", {"content": b" " * (2 << 20)}, 413),
        ("POST", "/generate", {"json": {"prompt": "a cat", "steps": 0}}, 422),
        ("POST", "/generate", {"json": {"prompt": "a cat", "steps": 1}}, 200),
        ("POST", "/generate", {"json": {"prompt": "a cat", "steps": 1, "stream": True}}, 200),
        ("POST", "/generate", {"json": {"prompt": "a cat", "steps": 1, "async": True}}, 202),
        ("GET", "/v1/jobs/nothing", {}, 404),
        ("POST", "/v1/images/generations", {"json": {"prompt": ""}}, 400),
        ("POST", "/v1/images/generations", {"content": b"["}, 400),
        ("POST", "/v1/load_lora_adapter", {"json": {}}, 400),
        ("GET", "/v1/models/nothing", {}, 404),
    ],
)
def test_a_reply_carries_its_id(
    server: RunningServer, method: str, path: str, request_fields: dict[str, Any], status: int
) -> None:
    reply = httpx.request(method, f"{server.url}{path}", timeout=60, **request_fields)
    identity = reply.headers["X-Request-Id"]
    assert ID.fullmatch(identity)
    assert reply.status_code == status, reply.text
    if reply.is_error and not path.startswith(("/v1/images", "/v1/load", "/v1/models")):
        assert reply.json()["error"]["request_id"] == identity


@pytest.mark.parametrize("identity", ["a", "4711", "0f" * 16, "gateway.7_a-B", "a" * 128])
def test_a_client_may_choose_the_id(server: RunningServer, identity: str) -> None:
    headers = {"X-Request-Id": identity}
    for fields in ({"steps": 0}, {"response_format": "json"}, {"stream": True}):
        body = {"prompt": "a cat", "steps": 1} | fields
        reply = httpx.post(f"{server.url}/generate", json=body, headers=headers, timeout=60)
        assert reply.headers.get_list("X-Request-Id") == [identity]
        assert f'"request_id":"{identity}"' in reply.text
    lines = [json.loads(line) for line in server.log_text().splitlines() if identity in line]
    assert {line["event"] for line in lines if line.get("request_id") == identity} == {
        "request_refused",
        "request_drawn",
    }


@pytest.mark.parametrize(
    "sent",
    [
        [""],
        ["a b"],
        ["a" * 129],
        ["-a"],
        ["a\tb"],
        ["a;b"],
        ['a"b'],
        ["猫".encode()],
        ["a=b"],
        ["a", "b"],
        ["a, b"],
    ],
)
def test_an_unsafe_id_is_replaced(server: RunningServer, sent: list[str | bytes]) -> None:
    headers = [(b"X-Request-Id", value.encode() if isinstance(value, str) else value) for value in sent]
    reply = httpx.get(f"{server.url}/healthz", headers=headers)
    (identity,) = reply.headers.get_list("X-Request-Id")
    assert ID.fullmatch(identity)
    assert len(identity) == 36


def test_requests_with_one_id_get_their_own_replies(server: RunningServer) -> None:
    def generate(seed: int, identity: str | None) -> bytes:
        headers = {} if identity is None else {"X-Request-Id": identity}
        body = {"prompt": "a cat", "steps": 2, "seed": seed}
        return httpx.post(f"{server.url}/generate", json=body, headers=headers, timeout=120).content

    seeds = range(4)
    expected = [generate(seed, None) for seed in seeds]
    with ThreadPoolExecutor(len(seeds)) as pool:
        assert list(pool.map(lambda seed: generate(seed, "one-id"), seeds)) == expected


def test_jobs_with_one_id_are_two(server: RunningServer) -> None:
    def submit() -> str:
        body = {"prompt": "a cat", "steps": 1, "async": True}
        reply = httpx.post(f"{server.url}/generate", json=body, headers={"X-Request-Id": "one-id"}, timeout=60)
        assert reply.headers["X-Request-Id"] == "one-id"
        return str(reply.json()["id"])

    first, second = submit(), submit()
    assert first != second
    assert "one-id" not in (first, second)
    assert httpx.get(f"{server.url}/v1/jobs/one-id").status_code == 404


def test_an_unforeseen_error_is_logged_once_with_its_id(caplog: pytest.LogCaptureFixture) -> None:
    app = FastAPI()
    app.add_middleware(ErrorReplies, reply=reply_to_error)
    app.add_middleware(RequestContext, counted=())

    @app.get("/")
    def fail() -> None:
        raise ZeroDivisionError

    with caplog.at_level(logging.DEBUG):
        reply = TestClient(app, raise_server_exceptions=False).get("/")
    assert reply.status_code == 500
    identity = reply.json()["error"]["request_id"]
    assert reply.headers["X-Request-Id"] == identity
    (record,) = (record for record in caplog.records if record.levelno >= logging.ERROR)
    assert identity in record.getMessage()
