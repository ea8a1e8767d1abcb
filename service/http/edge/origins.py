"""Cross-origin requests (CORS): the other sites whose pages may read replies."""

from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

_EXPOSED = (
    "Allow", "Location", "Retry-After", "Server-Timing", "X-Adapters", "X-Model-Hash", "X-Request-Id", "X-Seed",
)  # fmt: skip
"""Headers that a page's script may read."""


class AllowedOrigins(CORSMiddleware):
    """Starlette's middleware, except that it rejects no preflight itself.

    A preflight that is not allowed is answered as any OPTIONS request, without the headers that allow it: the browser then
    keeps the reply from the page. Starlette's own reply would be another error in another shape.
    """

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=["*"],
            allow_headers=["*"],
            allow_private_network=True,
            expose_headers=_EXPOSED,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        origin, method = headers.get("origin", ""), headers.get("access-control-request-method", "")
        if origin and method and not (self.is_allowed_origin(origin) and method in self.allow_methods):
            await self.simple_response(scope, receive, send, request_headers=headers)
        else:
            await super().__call__(scope, receive, send)
