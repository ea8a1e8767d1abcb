"""Who may use the studio: whoever has its token. Browsers log in and carry a cookie, programs a bearer token."""

import hashlib
import hmac
import time

from starlette.requests import Request
from starlette.responses import Response

from studio.page_error import PageError

COOKIE = "studio"
_DAY_SECONDS = 24 * 3600
_LIFETIME_SECONDS = 30 * _DAY_SECONDS


class Access:
    """The one token. A cookie says until when it is good, signed with the token: it survives a restart, and no new token."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    @property
    def is_open(self) -> bool:
        """Whether nothing is asked for."""
        return self._token is None

    def check(self, request: Request) -> None:
        """Raise ``PageError`` with status 401 unless the request carries the token, or a cookie made from it."""
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if self.is_open or (scheme.lower() == "bearer" and self.accepts(given)):
            return
        if not self._knows(request.cookies.get(COOKIE, "")):
            raise PageError("error.unauthorized", status=401)

    def accepts(self, token: str) -> bool:
        """Whether this is the token, in a time that does not tell how much of it is right."""
        return self._token is not None and hmac.compare_digest(token.encode(), self._token.encode())

    def log_in(self, reply: Response, *, secure: bool) -> None:
        """Give a browser its cookie; ``secure`` if it came by HTTPS."""
        until = str(int(time.time()) + _LIFETIME_SECONDS)
        reply.set_cookie(
            COOKIE,
            f"{until}.{self._sign(until)}",
            max_age=_LIFETIME_SECONDS,
            httponly=True,
            samesite="strict",
            secure=secure,
        )

    def _knows(self, cookie: str) -> bool:
        until, _, signature = cookie.partition(".")
        good = hmac.compare_digest(signature.encode(), self._sign(until).encode())
        return good and until.isdecimal() and int(until) > time.time()

    def _sign(self, text: str) -> str:
        assert self._token is not None
        return hmac.new(self._token.encode(), text.encode(), hashlib.sha256).hexdigest()
