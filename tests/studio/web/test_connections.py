"""Connections to a studio from clients that send too much, too slowly, or nothing."""

import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import httpx
import pytest

from tests.service.http.edge.sockets import read_all
from tests.studio.browser import RunningStudio, running_studio

MIB = 2**20


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[RunningStudio]:
    """Run a studio whose service does not answer."""
    with running_studio(tmp_path / "home", "--service-url", "http://127.0.0.1:9") as running:
        yield running


def connect(studio: RunningStudio) -> socket.socket:
    return socket.create_connection(("127.0.0.1", studio.port), timeout=60)


def check_error(reply: bytes, status: int, code: str) -> None:
    head, _, body = reply.partition(b"\r\n\r\n")
    assert head.split()[1] == b"%d" % status, reply
    assert b"\r\nconnection: close" in head.lower()
    assert json.loads(body)["error"]["code"] == code


def test_what_a_studio_does_not_read_is_answered_and_holds_no_shutdown(studio: RunningStudio) -> None:
    host = b"Host: 127.0.0.1\r\n"
    for request, status, code in (
        (b"GET /healthz HTTP/1.1\r\n" + host + b"A: b\r\n" * 101 + b"\r\n", 431, "headers_too_large"),
        (b"GET /healthz HTTP/1.1\r\n" + host + b"A: " + b"a" * 300_000, 431, "headers_too_large"),
        (b"nonsense\r\n\r\n", 400, "malformed_request"),
        (
            b"POST /preferences HTTP/1.1\r\n" + host + b"Transfer-Encoding: gzip\r\n\r\n",
            501,
            "unknown_transfer_encoding",
        ),
    ):
        with closing(connect(studio)) as connection:
            connection.sendall(request)
            check_error(read_all(connection), status, code)
    request = urllib.request.Request(f"{studio.url}/preferences", data=bytes(64 * MIB), method="POST")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    with refused.value as reply:
        assert reply.code == 413
    assert httpx.head(f"{studio.url}/healthz/").status_code == 200

    with ExitStack() as stack:
        connections = [stack.enter_context(closing(connect(studio))) for _ in range(40)]
        for i, connection in enumerate(connections):
            head = b"POST /preferences HTTP/1.1\r\nContent-Type: application/x-www-form-urlencoded\r\n" + host
            connection.sendall(head + b"Content-Length: 9\r\n\r\nl" if i % 2 else head)
        time.sleep(0.5)
        assert studio.stop() == 0
        for connection in connections:
            check_error(read_all(connection), 503, "draining")


def test_heads_and_bodies_that_do_not_come_are_answered_408(studio: RunningStudio) -> None:
    head = b"POST /preferences HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/x-www-form-urlencoded\r\n"
    with closing(connect(studio)) as slow_head, closing(connect(studio)) as slow_body:
        slow_head.sendall(head)
        slow_body.sendall(head + b"Content-Length: 9\r\n\r\nl")
        check_error(read_all(slow_head), 408, "request_timeout")
        check_error(read_all(slow_body), 408, "request_timeout")
