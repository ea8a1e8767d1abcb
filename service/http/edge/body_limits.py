"""Request bodies: their size, their deadline, and the draining of unread ones."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.edge.protocol import LINGER_BYTES, LINGER_SECONDS

_DRAIN_SECONDS = 30.0
"""Longest time for which a body is read and dropped after an early reply."""
_SLOWEST_BYTES_PER_SECOND = 16 * 1024
"""Slowest accepted rate of a body, once the time that every body has is over."""


SENT_TYPE = "sent_content_type"
"""Key of a request's scope: the content type that the client has sent."""


class JsonBodies:
    """Treats every body as JSON, whatever its content type (``curl -d`` sends another); limits its size and its time."""

    def __init__(self, app: ASGIApp, max_bytes: Callable[[Scope], int], max_seconds: float) -> None:
        """``max_bytes``: the size limit of a request's body."""
        self._app = app
        self._max_bytes = max_bytes
        self._max_seconds = max_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "0")
        headers = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
        scope[SENT_TYPE] = sent_type = Headers(scope=scope).get("content-type", "")
        _, _, parameters = sent_type.partition(";")  # such as charset
        scope["headers"] = [*headers, (b"content-type", f"application/json;{parameters}".encode("latin-1"))]
        timely = TimelyBody(receive, seconds=self._max_seconds)
        max_bytes = self._max_bytes(scope)
        size = 0

        async def receive_limited() -> Message:
            nonlocal size
            if int(declared) > max_bytes:  # before the client is told to continue
                raise HTTPException(413)  # the only exception that FastAPI passes on while it reads a body
            try:
                message = await timely.receive()
            except TimeoutError:
                raise HTTPException(408) from None
            size += len(message.get("body", b""))
            if size > max_bytes:
                raise HTTPException(413)
            return message

        await self._app(scope, receive_limited, send)


class TimelyBody:
    """A body with a deadline, which a minimum rate extends. After its end there is no deadline."""

    def __init__(self, receive: Receive, *, seconds: float) -> None:
        self._receive = receive
        self._deadline = asyncio.get_running_loop().time() + seconds
        self._is_over = False

    async def receive(self) -> Message:
        """Return the next message. Raises ``TimeoutError``."""
        if self._is_over:
            return await self._receive()
        async with asyncio.timeout_at(self._deadline):
            message = await self._receive()
        self._deadline += len(message.get("body", b"")) / _SLOWEST_BYTES_PER_SECOND
        self._is_over = not message.get("more_body", False)
        return message


class LingeringClose:
    """Reads and drops the rest of a body after a reply that did not wait for it, then closes the connection.

    Many clients read a reply only after they have sent the whole request. Closing a connection with unread data resets it,
    and the reply is lost (RFC 9112, section 9.6).
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        if "transfer-encoding" not in headers and headers.get("content-length", "0") == "0":
            await self._app(scope, receive, send)
            return
        is_read = is_held = False

        async def receive_noting() -> Message:
            nonlocal is_read
            message = await receive()
            is_read = is_read or not message.get("more_body", False)
            return message

        async def drain(*, silence_seconds: float) -> None:
            dropped_bytes = 0
            with suppress(TimeoutError):
                async with asyncio.timeout(_DRAIN_SECONDS):
                    while not is_read and dropped_bytes <= LINGER_BYTES:
                        async with asyncio.timeout(silence_seconds):
                            dropped_bytes += len((await receive_noting()).get("body", b""))

        async def send_noting(message: Message) -> None:
            nonlocal is_held
            if message["type"] == "http.response.start":
                if "expect" not in headers:  # receiving would tell the client to send its body
                    await drain(silence_seconds=0)
                if not is_read:
                    message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            elif not is_read and not message.get("more_body", False):
                is_held = True  # the server ends the connection with the last message
                message = {**message, "more_body": True}
            await send(message)

        await self._app(scope, receive_noting, send_noting)
        if is_held:
            await drain(silence_seconds=LINGER_SECONDS)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
