"""Bodies beyond the limits, and those that nobody reads, on a real server."""

import urllib.error
import urllib.request
from contextlib import closing

import pytest

from tests.conftest import RunningServer
from tests.service.http.edge.sockets import HEAD, MIB, connect, read_json, takes_all


@pytest.mark.parametrize("path", ["/generate", "/v1/images/generations", "/nowhere", "/healthz"])
@pytest.mark.parametrize("size_mib", [1, 64])
def test_a_client_that_writes_before_it_reads_sees_the_reply_to_a_large_body(
    server: RunningServer, path: str, size_mib: int
) -> None:
    status = {"/nowhere": 404, "/healthz": 405}.get(path, 413)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(server.url + path, data=bytes(size_mib * MIB), method="POST"))
    with refused.value as reply:
        assert reply.code == status
        assert reply.headers["x-request-id"]
    with closing(connect(server)) as connection:
        connection.sendall(b"POST %b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" % path.encode())
        for _ in range(size_mib):
            connection.sendall(b"100000\r\n%b\r\n" % bytes(MIB))
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
