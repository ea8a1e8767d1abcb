"""Limits of request heads: the request line with all headers."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.http.edge.errors import HeadersTooLargeError, MalformedRequestError
from service.http.edge.settings import HttpConfig

_LINE_OVERHEAD_BYTES = 4
"""The colon, the space and the line's end."""


def check_head(scope: Scope, config: HttpConfig) -> None:
    """Raise an error unless a request's head is within the limits and gives the body's length in only one way.

    The server itself limits a head that is unfinished; one that arrives in a single read can be longer.
    """
    headers = scope["headers"]
    size_bytes = len(scope["raw_path"]) + len(scope["query_string"])
    size_bytes += sum(len(name) + len(value) + _LINE_OVERHEAD_BYTES for name, value in headers)
    if size_bytes > config.max_header_bytes or len(headers) > config.max_headers:
        raise HeadersTooLargeError(max_bytes=config.max_header_bytes, max_headers=config.max_headers)
    named = Headers(scope=scope)
    if "transfer-encoding" in named and "content-length" in named:  # request smuggling: a proxy may use the other one
        raise MalformedRequestError("it has both a Transfer-Encoding and a Content-Length")


class CheckedHeads:
    """ASGI middleware for ``check_head``."""

    def __init__(self, app: ASGIApp, config: HttpConfig) -> None:
        self._app = app
        self._config = config

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "http":
            check_head(scope, self._config)
        await self._app(scope, receive, send)
