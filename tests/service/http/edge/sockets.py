"""Raw HTTP over sockets."""

import json
import socket
import time
from contextlib import closing
from urllib.parse import urlsplit

from tests.conftest import RunningServer

MIB = 2**20
HEAD = b"POST /generate HTTP/1.1\r\nHost: x\r\n"


def connect(server: RunningServer) -> socket.socket:
    address = urlsplit(server.url)
    return socket.create_connection((str(address.hostname), int(address.port or 0)), timeout=30)


def exchange(server: RunningServer, *parts: bytes) -> bytes:
    """Send bytes, even if the server no longer reads them, and return everything that it sends."""
    with closing(connect(server)) as connection:
        try:
            for part in parts:
                connection.sendall(part)
        except BrokenPipeError:
            pass
        return read_all(connection)


def takes_all(server: RunningServer, *parts: bytes, pause_seconds: float = 0.0) -> bool:
    """Send bytes; return True if the server kept the connection open until the last one."""
    with closing(connect(server)) as connection:
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause_seconds)
        except (BrokenPipeError, ConnectionResetError):
            return False
    return True


def read_all(connection: socket.socket) -> bytes:
    received = b""
    while part := connection.recv(65536):
        received += part
    return received


def read_json(connection: socket.socket) -> tuple[bytes, bytes]:
    """Return head and body of one reply, on a connection that stays open."""
    received = b""
    while not received.endswith(b"}"):
        part = connection.recv(65536)
        assert part, received
        received += part
    head, _, body = received.partition(b"\r\n\r\n")
    return head, body


def check_error(reply: bytes, status: int, code: str) -> None:
    """Assert that a reply is an error in the common form and ends its connection."""
    head, _, body = reply.partition(b"\r\n\r\n")
    line, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    assert line.split()[1] == str(status), reply
    error = json.loads(body)["error"]
    assert (error["code"], error["request_id"]) == (code, headers["x-request-id"])
    assert headers["connection"] == "close"
