"""One HTTP request as bytes on a connection of its own, and the reply, without a client library's corrections."""

import http.client
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

_PATIENCE_SECONDS = 60


@dataclass(frozen=True, kw_only=True)
class WireRequest:
    """The bytes of a request."""

    method: str
    target: bytes
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes

    @property
    def head(self) -> bytes:
        """Return request line and header fields."""
        lines = [self.method.encode() + b" " + self.target + b" HTTP/1.1"]
        names = {name.lower() for name, _ in self.headers}
        own = [(b"Host", b"127.0.0.1"), (b"Connection", b"close"), (b"Content-Length", str(len(self.body)).encode())]
        fields = [*(pair for pair in own if pair[0].lower() not in names), *self.headers]
        return b"\r\n".join([*lines, *(name + b": " + value for name, value in fields)]) + b"\r\n\r\n"


@dataclass(frozen=True, kw_only=True)
class WireReply:
    """The parsed reply."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes
    seconds: float


def exchange(url: str, request: WireRequest) -> WireReply:
    """Send a request and read its reply to the end."""
    parts = urlsplit(url)
    begun = time.monotonic()
    with socket.create_connection((parts.hostname or "", parts.port or 80), timeout=_PATIENCE_SECONDS) as connection:
        connection.sendall(request.head + request.body)
        reply = http.client.HTTPResponse(connection, method=request.method)
        reply.begin()
        body = reply.read()
    return WireReply(status=reply.status, headers=reply.headers, body=body, seconds=time.monotonic() - begun)
