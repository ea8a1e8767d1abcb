"""A client of an ASGI app that can send malformed requests, and measures the event loop's CPU time."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from starlette.types import ASGIApp, Message

Headers = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A reply."""

    status: int
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes
    loop_seconds: float
    """CPU time of the event loop's thread, during which it serves no other request."""


class AsgiClient:
    """A client that sends one request at a time, without the app's lifespan."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._runner = asyncio.Runner()

    def close(self) -> None:
        """Cancel the tasks that the app has started."""
        self._runner.close()

    def run(self, coroutine: Any) -> Any:
        """Run a coroutine in the loop of the app."""
        return self._runner.run(coroutine)

    def send(self, method: str, target: bytes, headers: Headers, body: bytes) -> Answer:
        """Send a request; ``target`` is sent unchanged in the request line."""
        raw_path, _, query = target.partition(b"?")
        scope: dict[str, Any] = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
            "path": unquote(raw_path.decode("ascii")), "raw_path": raw_path, "query_string": query, "root_path": "",
            "headers": [(name.lower(), value) for name, value in headers], "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8001),
        }  # fmt: skip
        begun = time.thread_time()
        sent = self._runner.run(self._exchange(scope, body))
        seconds = time.thread_time() - begun
        start = next(message for message in sent if message["type"] == "http.response.start")
        content = b"".join(message.get("body", b"") for message in sent)
        return Answer(status=start["status"], headers=start.get("headers", ()), body=content, loop_seconds=seconds)

    async def _exchange(self, scope: dict[str, Any], body: bytes) -> list[Message]:
        sent: list[Message] = []
        coming: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            return coming.pop() if coming else {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            sent.append(message)

        await asyncio.wait_for(self._app(scope, receive, send), 60)
        return sent
