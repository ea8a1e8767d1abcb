"""What stands before every page: whose requests are let in, how large they may be, and what browsers may do with replies."""

from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from studio.access import Access
from studio.config import StudioConfig
from studio.failures import page_error_of, reply_to_page_error
from studio.page_error import PageError

_LOCAL_NAMES = frozenset({"127.0.0.1", "localhost", "::1"})
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_OPEN_PATHS = ("/static/", "/login", "/preferences", "/healthz")
"""What can be seen without having logged in."""

HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    # Not no-referrer: browsers would then send the Origin of a form as null, and it could not be checked.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


class Guard:
    """ASGI middleware: checks a request from the outside in, and marks every reply."""

    def __init__(self, app: ASGIApp, *, config: StudioConfig, access: Access) -> None:
        self._app = app
        self._config = config
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
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
            self._check_host(request.headers)
            _check_origin(request)
            if not request.url.path.startswith(_OPEN_PATHS):
                self._access.check(request)
            limit_bytes = self._limit_bytes(request.headers)
            if int(request.headers.get("content-length", "0")) > limit_bytes:
                raise _too_large(limit_bytes)
            await self._app(scope, _limited(receive, limit_bytes), send_marked)
        except Exception as error:
            if is_answered:
                raise
            await reply_to_page_error(request, page_error_of(error))(scope, receive, send_marked)

    def _check_host(self, headers: Headers) -> None:
        """A page of another site whose name was made to mean this machine still sends its own name (DNS rebinding)."""
        name = urlsplit(f"//{headers.get('host', '')}").hostname
        if self._config.is_local and name not in _LOCAL_NAMES:
            raise PageError("error.host", status=421, value=name or "", port=self._config.port)

    def _limit_bytes(self, headers: Headers) -> int:
        if headers.get("content-type", "").startswith("multipart/form-data"):
            return self._config.max_upload_mib * 2**20
        return self._config.max_body_kib * 2**10


def _check_origin(request: Request) -> None:
    """No other site's page changes anything here (CSRF).

    Browsers say where a request comes from, in ``Sec-Fetch-Site`` or at least in ``Origin``, and pages cannot change what
    they say; a request with neither is no browser's. The same rules as Go's ``http.CrossOriginProtection``.
    """
    if request.method in _SAFE_METHODS:
        return
    if (site := request.headers.get("sec-fetch-site")) is not None:
        allowed = site in ("same-origin", "none")
    elif (origin := request.headers.get("origin")) is not None:
        allowed = urlsplit(origin).netloc == request.headers.get("host")
    else:
        allowed = True
    if not allowed:
        raise PageError("error.origin", status=403, value=request.headers.get("origin", "?"))


def _limited(receive: Receive, limit_bytes: int) -> Receive:
    """For bodies that do not say how long they are."""
    left = limit_bytes

    async def receive_some() -> Message:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        if left < 0:
            raise _too_large(limit_bytes)
        return message

    return receive_some


def _too_large(limit_bytes: int) -> PageError:
    limit = f"{limit_bytes / 2**20:g} MiB" if limit_bytes >= 2**20 else f"{limit_bytes / 2**10:g} KiB"
    return PageError("error.too_large", status=413, limit=limit)
