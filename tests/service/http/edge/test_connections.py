"""Connections of clients that send too much, too slowly, or nothing, on a real server."""

import json
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from service.http.edge import protocol
from service.http.edge.server import uvicorn_arguments
from service.http.edge.settings import HttpConfig
from tests.conftest import RunningServer, free_port, serve
from tests.service.http.edge.sockets import HEAD, MIB, check_error, connect, exchange, read_all, read_json, takes_all
from tests.service.test_serving import LONG, assert_stopped_early, steps_made

APPLE = {"prompt": "a red apple", "seed": 1, "steps": 1}


def test_a_client_that_closes_its_sending_side_is_answered(server: RunningServer) -> None:
    def reply(request: bytes) -> bytes:
        with closing(connect(server)) as connection:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            return read_all(connection)

    assert reply(b"GET /healthz HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200 OK")
    assert reply(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 3).count(b"HTTP/1.1 200 OK") == 3
    assert reply(HEAD + b"Content-Length: 2\r\n\r\n{}").startswith(b"HTTP/1.1 422")
    check_error(reply(HEAD + b"Content-Length: 9\r\n\r\n{"), 400, "malformed_request")
    check_error(reply(HEAD + b"Content-Le"), 400, "malformed_request")
    assert reply(b"") == b""


def test_a_client_that_closes_its_sending_side_waits_for_no_picture(
    server: RunningServer, client: httpx.Client
) -> None:
    body, made = json.dumps(LONG).encode(), steps_made(client)
    with closing(connect(server)) as connection:
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection) == b""
    assert_stopped_early(client, made)


def test_a_request_that_comes_too_slowly_is_answered_408(strict: RunningServer) -> None:
    begin = time.monotonic()
    check_error(exchange(strict, HEAD), 408, "request_timeout")
    check_error(exchange(strict, HEAD + b"Content-Length: 9\r\n\r\n{"), 408, "request_timeout")
    assert exchange(strict) == b""
    assert time.monotonic() - begin < 25
    assert not takes_all(strict, *(bytes([byte]) for byte in HEAD * 10), pause_seconds=0.1)


def test_an_idle_connection_is_kept_for_its_time_and_no_longer(strict: RunningServer) -> None:
    with closing(connect(strict)) as connection:
        for _ in range(2):
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert read_json(connection)[1] == b'{"status":"ok"}'
            time.sleep(2.2)  # longer than the time for a head, which begins with its first byte
        assert connection.recv(65536) == b""


def test_requests_ahead_of_replies_wait_at_the_client_and_are_all_answered(strict: RunningServer) -> None:
    later = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    body = json.dumps(APPLE | {"steps": 20}).encode()
    with closing(connect(strict)) as connection:
        connection.settimeout(120)
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(body), body) + later * 4000)  # 140 KiB
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert read_all(connection).count(b"HTTP/1.1 200 OK") == 4002


def test_of_requests_ahead_of_replies_a_part_is_read(strict: RunningServer) -> None:
    """The rest waits in the buffers of the sockets, so that the client cannot send it."""
    body = json.dumps(APPLE | {"steps": 100, "num_images": 8, "stream": True}).encode()
    later = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 20_000
    with closing(connect(strict)) as connection:
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        connection.settimeout(3)
        with pytest.raises(TimeoutError):
            connection.sendall(later * 64)


def test_beyond_the_most_connections_those_without_a_request_make_room(strict: RunningServer) -> None:
    with ExitStack() as stack:
        body = json.dumps(APPLE | {"steps": 40}).encode()
        working = stack.enter_context(closing(connect(strict)))
        working.sendall(HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        open_ones = []
        for i in range(200):
            connection = stack.enter_context(closing(connect(strict)))
            connection.sendall(HEAD if i % 2 else HEAD + b"Content-Length: 9\r\n\r\n")
            open_ones.append(connection)
            if i % 20 == 0:
                assert httpx.get(f"{strict.url}/healthz").status_code == 200
        http_process = psutil.Process(strict.process.pid).children(recursive=True)
        assert max(len(process.net_connections("tcp")) for process in http_process) < 30
        assert b"200 OK" in read_all(working)


def test_connections_without_a_request_hold_no_shutdown(tmp_path: Path) -> None:
    patient = ("--header-seconds", "100", "--body-seconds", "100")
    with serve(tmp_path, *patient) as server, ExitStack() as stack:
        body = json.dumps(APPLE | {"steps": 60}).encode()
        working = stack.enter_context(closing(connect(server)))
        working.settimeout(120)  # its picture takes long on a busy machine
        working.sendall(HEAD + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        others = [stack.enter_context(closing(connect(server))) for _ in range(80)]
        for i, connection in enumerate(others):
            match i % 4:
                case 0:
                    connection.sendall(HEAD + b"Content-Length: 900\r\n\r\n{")
                case 1:
                    connection.sendall(HEAD + b"X: ")
                case 2:
                    connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
                    read_json(connection)
                case 3:
                    connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n")
        time.sleep(1)
        server.process.send_signal(signal.SIGTERM)
        assert b"200 OK" in read_all(working)
        finished = time.monotonic()
        assert server.process.wait(timeout=60) == 0
        assert time.monotonic() - finished < 8
        check_error(read_all(others[0]), 503, "draining")
        check_error(read_all(others[1]), 503, "draining")
        assert "Forcibly" not in server.log_text()


@contextmanager
def in_thread(app: ASGIApp) -> Iterator[tuple[uvicorn.Server, int]]:
    """Run a server of another app with our connection limits, and return its port."""
    arguments = uvicorn_arguments(HttpConfig(), write_error=lambda *_: (400, b"{}"))
    port = free_port()
    running = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", lifespan="off", **arguments))
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    try:
        wait_until(lambda: running.started)
        yield running, port
    finally:
        running.should_exit = True
        thread.join(timeout=30)
        assert not thread.is_alive()


def test_what_cuts_off_a_reply_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"] = {"request_id": "the-one"}
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass

    caplog.set_level(logging.INFO, "lithograph")
    with in_thread(app) as (_, port), closing(socket.create_connection(("127.0.0.1", port), timeout=30)) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        connection.recv(65536)
        connection.sendall(b"zz\r\n")
        with suppress(ConnectionResetError):
            read_all(connection)
    (line,) = [record for record in caplog.records if getattr(record, "fields", {}).get("code") == "malformed_request"]
    assert line.fields["request_id"] == "the-one"  # type: ignore[attr-defined]


def test_a_client_that_reads_nothing_of_its_reply_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "_STALL_SECONDS", 0.3)

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(64 * MIB)})

    with (
        in_thread(app) as (running, port),
        closing(socket.create_connection(("127.0.0.1", port))) as slow,
        closing(socket.create_connection(("127.0.0.1", port), timeout=30)) as stalled,
    ):
        for connection in (slow, stalled):
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        received = 0
        while part := slow.recv(MIB):  # slowly, and for longer than the limit of a client that reads nothing
            received += len(part)
            time.sleep(0.01)
        assert received > 64 * MIB
        wait_until(lambda: not running.server_state.connections)
        assert len(read_all(stalled)) < 64 * MIB


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
