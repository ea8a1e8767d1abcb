"""Every failed request is one log line with its id, status, code and reason."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import RunningServer, serve
from tests.longcat.test_logs import lines
from tests.service.http.edge.sockets import HEAD, exchange

SECRET = "Xylophon"
KEY = {"Authorization": "Bearer secret"}
REQUEST_ID = re.compile(rb"x-request-id: (\S+)", re.IGNORECASE)
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n"


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Return a server with short time limits, an admin key and an empty adapter storage."""
    folder: Path = tmp_path_factory.mktemp("refused")
    options = ("--header-seconds", "1", "--body-seconds", "1", "--admin-key", "secret")
    with serve(folder, "--adapters", (folder / "adapters").as_uri(), *options) as running:
        yield running


def line_of(server: RunningServer, request_id: str) -> dict[str, Any]:
    """Return the one log line about a request."""
    told = lines("\n".join(line for line in server.log_text().splitlines() if line.startswith("{")))
    (line,) = [line for line in told if line.get("request_id") == request_id]
    assert SECRET.lower() not in server.log_text().lower()
    return line


@pytest.mark.parametrize(
    ("request_bytes", "status", "code", "reason"),
    [
        (CHUNKED + b"Content-Length: 1\r\n\r\n0\r\n\r\n", 400, "malformed_request", "both a Transfer-Encoding and"),
        (f"{SECRET}\r\n\r\n".encode(), 400, "malformed_request", "illegal request line"),
        (HEAD + f"{SECRET}\r\n\r\n".encode(), 400, "malformed_request", "illegal header line"),
        (b"GET /healthz HTTP/1.1\r\n\r\n", 400, "malformed_request", "Missing mandatory Host"),
        (CHUNKED + f"\r\n{SECRET}\r\n".encode(), 400, "malformed_request", "illegal chunk header"),
        (HEAD + b"A: b\r\n" * 101 + b"\r\n", 431, "headers_too_large", "exceed 32768 bytes or 100 headers"),
        (f"GET /{SECRET * 9000}".encode(), 431, "headers_too_large", "exceed 32768 bytes or 100 headers"),
        (HEAD + SECRET.encode(), 408, "request_timeout", "did not arrive within 1 s"),
        (HEAD + b"Content-Length: 9\r\n\r\n" + SECRET.encode(), 408, "request_timeout", "did not arrive within 1 s"),
        (HEAD + b"Transfer-Encoding: gzip\r\n\r\n", 501, "unknown_transfer_encoding", "is chunked"),
    ],
)
def test_a_message_that_is_refused_is_logged(
    strict: RunningServer, request_bytes: bytes, status: int, code: str, reason: str
) -> None:
    reply = exchange(strict, request_bytes)
    assert reply.startswith(f"HTTP/1.1 {status} ".encode()), reply
    (identity,) = REQUEST_ID.findall(reply)
    line = line_of(strict, identity.decode())
    assert (line["event"], line["status"], line["code"]) == ("request_refused", status, code)
    assert reason in line["message"]


@pytest.mark.parametrize(
    ("method", "path", "fields", "status", "code"),
    [
        ("POST", "/v1/adapters/ink/load", {}, 401, "unauthorized"),
        ("POST", "/v1/adapters/ink/load", {"headers": {"Authorization": f"Bearer {SECRET}"}}, 401, "unauthorized"),
        ("DELETE", "/v1/adapters/ink", {}, 401, "unauthorized"),
        ("POST", "/v1/load_lora_adapter", {"json": {"lora_name": SECRET}}, 401, "unauthorized"),
        ("POST", "/v1/adapters/ink/load", {"headers": KEY}, 404, "adapter_not_found"),
        ("POST", f"/v1/adapters/{SECRET}/load", {"headers": KEY}, 422, "invalid_adapter"),
        ("POST", f"/v1/adapters/ink/{SECRET}", {"headers": KEY}, 404, "not_found"),
        (
            "POST", "/v1/load_lora_adapter", {"headers": KEY, "json": {"lora_name": "ink", "lora_path": f"/{SECRET}"}},
            400, "invalid_request",
        ),
        ("GET", f"/{SECRET}", {}, 404, "not_found"),
        (SECRET.upper(), "/generate", {}, 405, "method_not_allowed"),
        ("GET", f"/v1/jobs/{SECRET}", {}, 404, "job_not_found"),
        ("GET", f"/v1/models/{SECRET}", {}, 404, "model_not_found"),
        ("POST", "/generate", {"json": {"prompt": SECRET, "width": 100}}, 422, "invalid_request"),
        ("POST", "/v1/images/generations", {"json": {"prompt": SECRET, "size": "100x100"}}, 400, "invalid_request"),
        ("POST", "/v1/images/generations", {"json": {"prompt": SECRET, "size": "128x9984"}}, 400, "invalid_request"),
    ],
)  # fmt: skip
def test_a_request_that_an_endpoint_refuses_is_logged_with_the_status_of_its_reply(
    strict: RunningServer, method: str, path: str, fields: dict[str, Any], status: int, code: str
) -> None:
    reply = httpx.request(method, f"{strict.url}{path}", timeout=60, **fields)
    assert reply.status_code == status, reply.text
    line = line_of(strict, reply.headers["x-request-id"])
    assert (line["event"], line["status"], line["code"]) == ("request_refused", status, code)
    assert line["message"]
    if code == "unauthorized":
        assert line["endpoint"].startswith(("/v1/adapters/{name}", "/v1/load_lora_adapter"))


def test_an_admitted_request_that_fails_is_logged_with_the_status_of_its_reply(strict: RunningServer) -> None:
    """Only the engine finds the adapter missing; OpenAI's endpoint reports an unknown model."""
    for path, fields in (("/generate", {"adapters": [{"name": "ink"}]}), ("/v1/images/generations", {"model": "ink"})):
        reply = httpx.post(f"{strict.url}{path}", json={"prompt": "a cat", "steps": 1} | fields, timeout=60)
        line = line_of(strict, reply.headers["x-request-id"])
        assert (line["event"], line["status"]) == ("request_failed", reply.status_code)
        assert "ink" in line["message"]


def test_reads_without_an_error_are_not_logged(strict: RunningServer) -> None:
    for path in ("/healthz", "/readyz", "/v1/info", "/v1/adapters", "/metrics"):
        reply = httpx.get(f"{strict.url}{path}")
        assert reply.is_success
        assert json.dumps(reply.headers["x-request-id"]) not in strict.log_text()
