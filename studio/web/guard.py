"""Checks of every request's origin, host and size, and the security headers of every reply."""

import re
from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.edge.body_limits import TimelyBody
from service.http.edge.errors import MessageError, SlowRequestError
from service.http.edge.heads import check_head
from service.http.edge.settings import HttpConfig
from studio.config import StudioConfig
from studio.web.access import Access
from studio.web.error_pages import reply_to
from studio.web.errors import ChangeForbiddenError, TooLargeError, WrongHostError

_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9._-]*)(:[0-9]{1,5})?", re.IGNORECASE)
"""A valid ``Host`` header (RFC 9110, section 7.2). URLs are built from it, so nothing else may pass."""
_HTTP = HttpConfig()
"""The default limits of HTTP messages, as in the service."""
_LOCAL_NAMES = frozenset({"127.0.0.1", "localhost", "[::1]"})
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_OPEN_PATHS = ("/static/", "/login", "/preferences", "/healthz")
"""Paths that need no login."""

HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    # Not no-referrer: browsers would then send a form's Origin as null, which cannot be checked.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


class Guard:
    """ASGI middleware that checks every request and adds the security headers to every reply."""

    def __init__(self, app: ASGIApp, *, config: StudioConfig, access: Access) -> None:
        self._app = app
        self._config = config
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        is_answered = False

        async def send_marked(message: Message) -> None:
            nonlocal is_answered
            if message["type"] == "http.response.start":
                is_answered = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        request = Request(scope)
        try:
            check_head(scope, _HTTP)
            self._check_host(request.headers)
            _check_origin(request)
            if not scope["path"].startswith(_OPEN_PATHS):
                await self._access.check(request)
            limit_bytes = self._limit_bytes(request.headers)
            if _announced_bytes(request.headers) > limit_bytes:
                raise _too_large(limit_bytes)
            await self._app(scope, _limited(receive, limit_bytes), send_marked)
        except Exception as error:  # any: the browser gets a page, and error_of logs unexpected ones
            if is_answered:
                raise
            reply = reply_to(request, error)
            if isinstance(error, MessageError):
                reply.headers["Connection"] = "close"
            await reply(scope, receive, send_marked)

    def _check_host(self, headers: Headers) -> None:
        """Reject other host names: after DNS rebinding, another site's page still sends its own name."""
        match = _HOST.fullmatch(headers.get("host", ""))
        if match is None:
            raise WrongHostError(
                "host_malformed", "not a host name", remedy="open the studio by its name or address",
                field="host", value=headers["host"],
            )  # fmt: skip
        name = match["name"].lower()
        if self._config.is_local and name not in _LOCAL_NAMES:
            raise WrongHostError(
                "host_not_local",
                "this studio answers to localhost and 127.0.0.1 only",
                remedy="open http://127.0.0.1:{port}",
                field="host",
                value=name,
                port=self._config.port,
            )

    def _limit_bytes(self, headers: Headers) -> int:
        if headers.get("content-type", "").startswith("multipart/form-data"):
            return self._config.max_upload_mib * 2**20
        return self._config.max_body_kib * 2**10


def _check_origin(request: Request) -> None:
    """Reject changes from other sites' pages (CSRF).

    Browsers send a request's origin in ``Sec-Fetch-Site``, or at least in ``Origin``, and pages cannot change these
    headers; a request with neither is not a browser's. The rules are those of Go's ``http.CrossOriginProtection``.
    """
    if request.method in _SAFE_METHODS:
        return
    if (site := request.headers.get("sec-fetch-site")) is not None:
        allowed = site in ("same-origin", "none")
    elif (origin := request.headers.get("origin")) is not None:
        allowed = origin.partition("://")[2] == request.headers.get("host") != ""
    else:
        allowed = True
    if not allowed:
        raise ChangeForbiddenError(
            "cross_site_request",
            "a page of another site ({origin}) must not change anything here",
            remedy="use the studio's own pages",
            origin=request.headers.get("origin", "?"),
        )


def _announced_bytes(headers: Headers) -> int:
    """Return the request's Content-Length; 0 if it is missing or not a number, as in chunked bodies."""
    given = headers.get("content-length", "")
    return int(given) if re.fullmatch(r"[0-9]{1,18}", given) else 0


def _limited(receive: Receive, limit_bytes: int) -> Receive:
    """Limit the time of a body, and the size of a body without a Content-Length."""
    left = limit_bytes
    timely = TimelyBody(receive, seconds=_HTTP.body_seconds)

    async def receive_some() -> Message:
        nonlocal left
        try:
            message = await timely.receive()
        except TimeoutError:
            raise SlowRequestError(seconds=_HTTP.body_seconds) from None
        left -= len(message.get("body", b""))
        if left < 0:
            raise _too_large(limit_bytes)
        return message

    return receive_some


def _too_large(limit_bytes: int) -> TooLargeError:
    limit = f"{limit_bytes / 2**20:g} MiB" if limit_bytes >= 2**20 else f"{limit_bytes / 2**10:g} KiB"
    return TooLargeError(
        "body_over_limit",
        "the upload is larger than {limit}",
        remedy="send less at once, or start the studio with a larger limit",
        limit=limit,
    )
