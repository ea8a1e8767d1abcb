"""Heads beyond the limits, and what is not HTTP, on a real server."""

import httpx
import psutil
import pytest

from tests.conftest import RunningServer
from tests.service.http.edge.sockets import HEAD, MIB, check_error, exchange


@pytest.mark.parametrize(
    "parts",
    [
        [b"GET /healthz HTTP/1.1\r\nHost: x\r\nA: ", *[b"a" * MIB] * 100],
        [b"GET /healthz HTTP/1.1\r\nHost: x\r\n", *[b"A: b\r\n"] * 10_000, b"\r\n"],
        [b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 101 + b"\r\n"],
        [b"GET /healthz HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 40_000 + b"\r\n\r\n"],
        [b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n"],
        [b"G" * MIB],
        [HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"x" * MIB],
        [HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"A: b\r\n" * 100_000 + b"\r\n"],
    ],
    ids=[
        "one header",
        "10,000 headers",
        "101 headers",
        "40 KB",
        "path",
        "no end of line",
        "chunk extension",
        "trailers",
    ],
)
def test_a_head_beyond_the_limits_is_answered_431(strict: RunningServer, parts: list[bytes]) -> None:
    memory = resident_bytes(strict)
    check_error(exchange(strict, *parts), 431, "headers_too_large")
    assert resident_bytes(strict) < memory + 30 * MIB
    assert httpx.get(f"{strict.url}/healthz").elapsed.total_seconds() < 2


def resident_bytes(server: RunningServer) -> int:
    return sum(process.memory_info().rss for process in psutil.Process(server.process.pid).children(recursive=True))


@pytest.mark.parametrize(
    ("request_bytes", "status", "code"),
    [
        (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400, "malformed_request"),
        (b"GET /healthz HTTP/1.1\r\n\r\n", 400, "malformed_request"),
        (HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 400, "malformed_request"),
        (HEAD + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n", 400, "malformed_request"),
        (HEAD + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG", 400, "malformed_request"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400, "malformed_request"),
        (HEAD + b"Transfer-Encoding: gzip\r\n\r\n", 501, "unknown_transfer_encoding"),
    ],
)
def test_what_is_not_http_is_answered_as_every_error(
    strict: RunningServer, request_bytes: bytes, status: int, code: str
) -> None:
    check_error(exchange(strict, request_bytes), status, code)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\r\nGET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n\r\n",
        b"GET /healthz HTTP/1.0\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close, Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    ],
)
def test_old_and_new_clients_are_answered(strict: RunningServer, request_bytes: bytes) -> None:
    reply = exchange(strict, request_bytes)
    assert reply.count(b"HTTP/1.1 200 OK") == reply.count(b'{"status":"ok"}') == request_bytes.count(b"/healthz")
    assert "Traceback" not in strict.log_text(), strict.log_text()
