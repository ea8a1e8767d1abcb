"""Every reply carries its request id, and an error's body repeats it."""

import logging
import re
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
        ("POST", "/generate", {"content": b" " * (2 << 20)}, 413),
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
