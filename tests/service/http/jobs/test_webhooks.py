"""Hostile receivers of webhooks: endless replies, decompression bombs, silence."""

import asyncio
import gzip
import resource
import socketserver
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime

import pytest

from service.http.jobs import webhooks
from service.http.jobs.webhooks import Webhooks
from service.wire.job import JobReport, JobStatus
from tests.service.http.jobs.conftest import SECRET

Behaviour = Callable[[asyncio.StreamWriter], Awaitable[None]]
BOMB = gzip.compress(bytes(256 * 2**20), 9)


async def endless_body(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"10000\r\n" + bytes(65536) + b"\r\n")
        await writer.drain()


async def bomb(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(BOMB) + BOMB)
    await writer.drain()


async def drip(writer: asyncio.StreamWriter) -> None:
    """Send a byte of the head just before each read would time out."""
    for byte in b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 1000:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.05)


async def silence(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


async def early_hints(writer: asyncio.StreamWriter) -> None:
    """Send endless interim responses."""
    while True:
        writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.01)


async def long_line(writer: asyncio.StreamWriter) -> None:
    """Send something that is not HTTP."""
    writer.write(b"x" * 60_000 + b"\r\n\r\n")
    await writer.drain()


async def redirect(writer: asyncio.StreamWriter) -> None:
    """Redirect to itself, as to any address within reach of the server."""
    host, port = writer.get_extra_info("sockname")
    head = f"HTTP/1.1 307 Temporary Redirect\r\nLocation: http://{host}:{port}/inside\r\nContent-Length: 0\r\n\r\n"
    writer.write(head.encode())
    await writer.drain()


def finished_job() -> JobReport:
    now = datetime.now(UTC)
    return JobReport(
        id="one", status=JobStatus.SUCCEEDED, created_at=now, started_at=now, finished_at=now, expires_at=now,
        steps_made=1, steps=1, result_url=None, result=None, error=None,
    )  # fmt: skip


async def send_to(behaviour: Behaviour) -> tuple[int, float]:
    """Send a webhook to such a receiver; return the attempts and the seconds taken."""
    attempts = 0

    async def receive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal attempts
        attempts += 1
        try:
            await reader.readuntil(b"\r\n\r\n")
            await behaviour(writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(receive, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    begin = time.monotonic()
    await Webhooks(SECRET).send(f"http://127.0.0.1:{port}/", finished_job(), request_id="a-request")
    seconds = time.monotonic() - begin
    server.close()
    return attempts, seconds


@pytest.mark.parametrize("behaviour", [endless_body, bomb])
def test_a_replys_body_is_not_read(behaviour: Behaviour) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    attempts, seconds = asyncio.run(send_to(behaviour))
    assert attempts == 1, "2xx is a success whatever follows"
    assert seconds < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024, "KiB"


def test_a_redirect_is_not_followed_but_a_failed_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "_TOTAL_SECONDS", 0.5)  # before the second attempt, a second after the first
    attempts, _ = asyncio.run(send_to(redirect))
    assert attempts == 1


@pytest.mark.parametrize("behaviour", [drip, silence, early_hints])
def test_an_attempt_and_all_attempts_have_a_deadline(behaviour: Behaviour, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "_ATTEMPT_SECONDS", 0.5)
    monkeypatch.setattr(webhooks, "_TOTAL_SECONDS", 1.6)
    attempts, seconds = asyncio.run(send_to(behaviour))
    assert attempts <= 2
    assert 1.5 < seconds < 30  # a busy machine is late, and the receivers are never ready


def test_a_reason_has_one_short_line_whatever_the_receiver_sends(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(webhooks, "_TOTAL_SECONDS", 600.0)
    monkeypatch.setattr(webhooks, "_MOST_ATTEMPTS", 1)
    asyncio.run(send_to(long_line))
    (record,) = [record for record in caplog.records if getattr(record, "event", "") == "webhook_given_up"]
    assert len(record.fields["reason"]) < 300  # type: ignore[attr-defined]


class Flood(socketserver.BaseRequestHandler):
    """Sends interim responses as fast as they are read."""

    def handle(self) -> None:
        self.request.recv(65536)
        with suppress(ConnectionError):
            while True:
                self.request.sendall(b"HTTP/1.1 100 C\r\n\r\n" * 4000)


def test_a_receiver_that_keeps_the_parser_busy_costs_requests_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "_TOTAL_SECONDS", 3.0)

    async def own_seconds(url: str) -> float:
        before = time.thread_time()
        await Webhooks(SECRET).send(url, finished_job(), request_id="a-request")
        return time.thread_time() - before

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Flood) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host, port = server.server_address[:2]
        assert asyncio.run(own_seconds(f"http://{host!s}:{port}/")) < 0.05
        server.shutdown()


@pytest.mark.parametrize(
    ("variable", "value"),
    [("HTTP_PROXY", "nonsense://x"), ("HTTP_PROXY", "socks5://127.0.0.1:1"), ("SSL_CERT_FILE", "/nowhere")],
)
def test_an_odd_environment_is_the_reason_of_a_failed_webhook(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(variable, value)
    monkeypatch.setattr(webhooks, "_MOST_ATTEMPTS", 1)
    asyncio.run(Webhooks(SECRET).send("http://hooks.example.com/", finished_job(), request_id="a-request"))
    (record,) = [record for record in caplog.records if getattr(record, "event", "") == "webhook_given_up"]
    assert record.fields["reason"]  # type: ignore[attr-defined]
