"""Connections of a server that is leaving: each is closed with its next reply.

Whoever keeps connections open would otherwise come back to a server that has stopped; a new connection goes, through a load
balancer, to one that has not.
"""

from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class ConnectionClose:
    """ASGI middleware: says ``Connection: close`` in each reply that begins while ``is_leaving()``."""

    def __init__(self, app: ASGIApp, is_leaving: Callable[[], bool]) -> None:
        self._app = app
        self._is_leaving = is_leaving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start" and self._is_leaving():
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            await send(message)

        await self._app(scope, receive, send_on)
