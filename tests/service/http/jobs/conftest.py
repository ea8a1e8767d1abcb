import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from tests.conftest import RunningServer, serve

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@dataclass
class Receiver:
    """A real HTTP server that records webhooks."""

    answers: list[int] = field(default_factory=list)
    """Statuses of the next replies; afterwards 204."""
    heard: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    url: str = ""

    def wait(self, count: int) -> None:
        deadline = time.monotonic() + 60
        while len(self.heard) < count:
            assert time.monotonic() < deadline, self.heard
            time.sleep(0.05)


@pytest.fixture(scope="package")
def receiver_server() -> Iterator[tuple[ThreadingHTTPServer, list[Receiver]]]:
    current: list[Receiver] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            receiver = current[-1]
            body = self.rfile.read(int(self.headers["content-length"]))
            receiver.heard.append(({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(receiver.answers.pop(0) if receiver.answers else 204)
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server, current
        server.shutdown()


@pytest.fixture
def receiver(receiver_server: tuple[ThreadingHTTPServer, list[Receiver]]) -> Receiver:
    server, current = receiver_server
    current.append(Receiver(url=f"http://127.0.0.1:{server.server_port}/hook"))
    return current[-1]


@pytest.fixture(scope="package")
def running(
    tmp_path_factory: pytest.TempPathFactory, receiver_server: tuple[ThreadingHTTPServer, list[Receiver]]
) -> Iterator[RunningServer]:
    options = ("--webhook-secret", SECRET, "--webhook-host", f"127.0.0.1:{receiver_server[0].server_port}")
    with serve(tmp_path_factory.mktemp("jobs"), "--max-jobs", "4", "--max-queue", "3", *options) as server:
        yield server


@pytest.fixture
def http(running: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=running.url, timeout=60) as session:
        yield session
