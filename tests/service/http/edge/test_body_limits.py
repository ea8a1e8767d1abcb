"""Bodies beyond the limits, and those that nobody reads, on a real server."""

import urllib.error
import urllib.request
from collections.abc import Iterable
from contextlib import closing

import h11
import httpx
import psutil
import pytest

from service.http.edge import protocol
from tests.conftest import RunningServer
from tests.service.http.edge.sockets import HEAD, MIB, check_error, connect, exchange, read_json, takes_all


@pytest.mark.parametrize("path", ["/generate", "/v1/images/generations", "/nowhere", "/healthz"])
@pytest.mark.parametrize("size_mib", [1, 64])
def test_a_client_that_writes_before_it_reads_sees_the_reply_to_a_large_body(
    server: RunningServer, path: str, size_mib: int
) -> None:
    status = {"/nowhere": 404, "/healthz": 405}.get(path, 413)
    if (path, size_mib) == ("/generate", 1):  # a picture may be as large
        status = 400
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(server.url + path, data=bytes(size_mib * MIB), method="POST"))
    with refused.value as reply:
        assert reply.code == status
        assert reply.headers["x-request-id"]
    with closing(connect(server)) as connection:
        connection.sendall(b"POST %b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" % path.encode())
        for _ in range(size_mib):
            connection.sendall(b"100000\r\n%b\r\n" % bytes(MIB))
        if status == 400:  # it is read to its end
            connection.sendall(b"0\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 %d" % status)


def test_expect_100_continue_before_a_large_body_is_answered_413_at_once(server: RunningServer) -> None:
    with closing(connect(server)) as connection:
        connection.sendall(HEAD + b"Content-Length: 67108864\r\nExpect: 100-continue\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 413")


def test_an_endless_body_is_cut_off(server: RunningServer) -> None:
    chunk = b"100000\r\n%b\r\n" % bytes(MIB)
    assert not takes_all(server, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 2000)


def test_a_request_that_is_answered_early_leaves_its_connection_usable_if_its_body_has_come(
    server: RunningServer,
) -> None:
    with closing(connect(server)) as connection:
        for _ in range(2):
            connection.sendall(b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
            head, _ = read_json(connection)
            assert head.startswith(b"HTTP/1.1 404")
            assert b"connection: close" not in head


def chunked(chunks: Iterable[bytes]) -> bytes:
    """Return a request to /generate with these chunks."""
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return HEAD + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n"


def test_a_body_may_have_as_many_chunks_as_its_size_explains(server: RunningServer) -> None:
    piecemeal = [b" "] * (protocol._SPARE_CHUNKS - 1)
    reply = exchange(server, chunked([*piecemeal, b"{}"]))
    assert b"HTTP/1.1 422" in reply
    check_error(exchange(server, chunked([*piecemeal, *piecemeal, b"{}"])), 400, "malformed_request")


@pytest.mark.parametrize("path", [b"/generate", b"/nowhere", b"/healthz"])
def test_chunks_of_one_byte_do_not_hold_the_event_loop(server: RunningServer, path: bytes) -> None:
    """A megabyte of them took the loop a second for each 20,000, and after an early reply all were read."""
    attack = HEAD.replace(b"/generate", path) + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 300_000
    process = http_process(server)
    begin = sum(process.cpu_times()[:2])
    takes_all(server, attack)
    httpx.get(f"{server.url}/healthz").raise_for_status()
    assert sum(process.cpu_times()[:2]) - begin < 1


def http_process(server: RunningServer) -> psutil.Process:
    """Return the process that has the port."""
    port = int(server.url.rpartition(":")[2])
    children = psutil.Process(server.process.pid).children(recursive=True)
    return next(
        process
        for process in children
        if any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in process.net_connections("tcp"))
    )


def test_large_bodies_may_have_many_chunks() -> None:
    connection = protocol.BoundedConnection(h11.SERVER)
    connection.receive_data(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    assert isinstance(connection.next_event(), h11.Request)
    chunk = b"200\r\n%b\r\n" % bytes(0x200)
    for _ in range(4 * protocol._SPARE_CHUNKS):
        connection.receive_data(chunk)
        assert isinstance(connection.next_event(), h11.Data)
        assert connection.next_event() is h11.NEED_DATA
