"""API keys of requests. A request without a valid one ends here, before its body is read."""

import asyncio
import hmac
from typing import Annotated

from fastapi import Depends, Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from longcat.errors import UserError
from service.access.caller import ANYONE, Caller, Role
from service.access.key_file import KeyFile
from service.access.settings import AccessConfig
from service.http.edge.paths import path_of

_OPEN = frozenset({"/", "/docs", "/healthz", "/openapi.json", "/readyz"})
"""Paths that need no key: probes, and the documentation."""
_OPEN_FOLDER = "/docs-assets/"
_METRICS = "/metrics"
_DELAY_SECONDS = 0.5
"""Time until a request with a wrong key is answered."""


_ADMINISTRATOR = Caller(name="(admin key)", roles=frozenset({Role.ADMIN}))
"""The sender of requests with ``--admin-key``."""


class UnauthorizedError(UserError):
    """A request lacks a key, or has a wrong one."""

    code = "unauthorized"


class Authentication:
    """ASGI middleware that finds the sender of a request, in ``request.state.caller``.

    Without a file of keys, that is everyone. Raises ``UnauthorizedError`` for a missing or a wrong key.
    """

    def __init__(self, app: ASGIApp, *, config: AccessConfig, key_file: KeyFile | None) -> None:
        self._app = app
        self._config = config
        self._key_file = key_file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "http":
            scope["state"]["caller"] = await self._caller_of(scope)
        await self._app(scope, receive, send)

    async def _caller_of(self, scope: Scope) -> Caller:
        path = path_of(scope)
        if self._key_file is None or path in _OPEN or path.startswith(_OPEN_FOLDER) or scope["method"] == "OPTIONS":
            return ANYONE
        if path == _METRICS and not self._metrics_need_key(self._key_file):
            return ANYONE
        if (key := bearer_token(Headers(scope=scope))) is None:
            raise UnauthorizedError(
                "api_key_missing",
                "the request carries no API key",
                remedy="send the header Authorization: Bearer KEY",
            )
        if (admin_key := self._config.admin_key) is not None and is_same(key, admin_key):
            return _ADMINISTRATOR
        if (caller := await self._key_file.caller_of(key)) is None:
            await asyncio.sleep(_DELAY_SECONDS)
            raise UnauthorizedError(
                "api_key_unknown",
                "the API key is not valid",
                remedy="send another one, or make one with: lithograph keys add NAME",
            )
        if path == _METRICS:
            caller.check(Role.ADMIN)
        return caller

    def _metrics_need_key(self, key_file: KeyFile) -> bool:
        choice = self._config.metrics_key
        return choice == "required" or (choice == "auto" and key_file.keys.are_limited)


async def caller_named(name: str | None, config: AccessConfig, key_file: KeyFile | None) -> Caller | None:
    """Return the sender of what was requested under the name of a key; None if there is no such key any more."""
    if key_file is None:
        return ANYONE
    if config.admin_key is not None and name == _ADMINISTRATOR.name:
        return _ADMINISTRATOR
    return await key_file.caller_named(name)


def caller_of(request: Request) -> Caller:
    """Return the sender of a request."""
    caller: Caller = request.state.caller
    return caller


CallerDependency = Annotated[Caller, Depends(caller_of)]


def bearer_token(headers: Headers) -> str | None:
    """Return the token of a request, or None: without one, with another scheme, or with several headers."""
    given = headers.getlist("authorization")
    scheme, _, token = (given[0] if len(given) == 1 else "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


def is_same(given: str, secret: str) -> bool:
    """Return whether two secrets are equal, in a time that does not depend on where they differ."""
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), secret.encode())
