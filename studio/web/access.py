"""Access to the studio by its token. Browsers log in and carry a signed cookie, programs send a bearer token."""

import asyncio
import hashlib
import hmac
from collections import Counter

from itsdangerous import BadSignature, TimestampSigner
from starlette.requests import Request
from starlette.responses import Response

from studio.web.errors import LoginRequiredError, TooManyAttemptsError

COOKIE = "studio"
_DAY_SECONDS = 24 * 3600
_LIFETIME_SECONDS = 30 * _DAY_SECONDS
_DELAY_SECONDS = 1.0
"""Delay of the reply to a wrong token."""
_MOST_DELAYED = 8
"""Delayed replies to one address at once; further attempts of that address are rejected unchecked."""


class Access:
    """The token, and cookies signed with it: a cookie survives a restart of the studio, but not a new token."""

    def __init__(self, token: str | None) -> None:
        self._token = token
        self._delayed: Counter[str] = Counter()
        """Number of delayed replies by client address."""
        self._signer = None if token is None else TimestampSigner(token, salt=COOKIE, digest_method=hashlib.sha256)

    @property
    def is_open(self) -> bool:
        """Return True if no token is required."""
        return self._token is None

    async def check(self, request: Request) -> None:
        """Raise ``LoginRequiredError`` unless the request carries the token, or a cookie signed with it."""
        if self.is_open or self._is_signed(request.cookies.get(COOKIE, "")):
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not await self.accepts(request, given):
            raise LoginRequiredError("not_logged_in", "this studio requires its token", remedy="log in first")

    async def accepts(self, request: Request, token: str) -> bool:
        """Return True for the right token, compared in constant time; False for a wrong one, after a delay.

        Raises ``TooManyAttemptsError`` for an address with too many delayed replies: parallel connections would otherwise
        circumvent the delay.
        """
        address = request.client.host if request.client else ""
        if self._delayed[address] >= _MOST_DELAYED:
            raise TooManyAttemptsError(
                "too_many_attempts", "too many wrong tokens from this address", remedy="wait a moment, then try again"
            )
        given = token.encode("utf-8", "surrogatepass")
        if self._token is not None and hmac.compare_digest(given, self._token.encode()):
            return True
        self._delayed[address] += 1
        try:
            await asyncio.sleep(_DELAY_SECONDS)
        finally:
            self._delayed[address] -= 1
            if not self._delayed[address]:
                del self._delayed[address]
        return False

    def log_in(self, reply: Response, *, secure: bool) -> None:
        """Set the browser's login cookie; ``secure`` if the request came by HTTPS."""
        assert self._signer is not None
        cookie = self._signer.sign(COOKIE).decode("ascii")
        reply.set_cookie(COOKIE, cookie, max_age=_LIFETIME_SECONDS, httponly=True, samesite="strict", secure=secure)

    def _is_signed(self, cookie: str) -> bool:
        assert self._signer is not None
        try:
            self._signer.unsign(cookie, max_age=_LIFETIME_SECONDS)
        except BadSignature:  # includes SignatureExpired
            return False
        return True
