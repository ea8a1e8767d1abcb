"""One request of a user of the load test and its reply, checked."""

import http.client
import json
import struct
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import requests

from loadtest.suite.mix import LoadRequest
from loadtest.suite.sample import ScenarioOutcome

TIMEOUT_SECONDS = 600.0
_SIGNATURE = b"\x89PNG\r\n\x1a\n"

JSON_HEADERS = {"Content-Type": "application/json"}


class WrongReplyError(Exception):
    """A reply that does not match the request."""


class Request:
    """One request under way and its results so far."""

    def __init__(self, load_request: LoadRequest) -> None:
        self.load_request = load_request
        self.outcome: ScenarioOutcome = "failed"
        self.status = 0
        self.first_event_seconds: float | None = None
        self.content = b""

    def is_stream(self, reply: requests.Response) -> bool:
        """Return True if the reply is a stream, False for 429. Raises ``WrongReplyError`` for any other."""
        self.status = reply.status_code
        if self.status != 200:
            self.content = reply.content
            self.check(None, None)
        return self.status == 200

    def check(self, content_type: str | None, applied: str | None) -> None:
        """Check that the reply is a PNG of the size, generated with the adapter, or 429. Raises ``WrongReplyError``."""
        load_request = self.load_request
        if self.status == 429:
            self.outcome = "refused"
            return
        if self.status != 200:
            raise WrongReplyError(f"{self.status}: {self.content[:300].decode(errors='replace')}")
        if content_type != "image/png" or not self.content.startswith(_SIGNATURE):
            raise WrongReplyError(f"no PNG but {content_type}, {len(self.content)} bytes")
        size = struct.unpack(">II", self.content[16:24])
        if size != (load_request.width_px, load_request.height_px):
            raise WrongReplyError(f"a picture of {size[0]} x {size[1]} px")
        if load_request.adapter is not None and not (applied or "").startswith(f"{load_request.adapter}@"):
            raise WrongReplyError(f"adapters applied: {applied}")
        self.outcome = "picture"


def connect(url: str) -> http.client.HTTPConnection:
    """Return a connection to a URL's host, which is opened when something is sent."""
    address = urlsplit(url)
    assert address.hostname is not None
    return http.client.HTTPConnection(address.hostname, address.port, timeout=TIMEOUT_SECONDS)


def server_sent(reply: requests.Response) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the events of a stream. Raises ``WrongReplyError`` for an error event."""
    name = ""
    for line in reply.iter_lines(chunk_size=1, decode_unicode=True):
        if line.startswith("event:"):
            name = line.removeprefix("event:").strip()
        elif line.startswith("data:"):
            if name == "error":
                raise WrongReplyError(line)
            yield name, json.loads(line.removeprefix("data:"))
