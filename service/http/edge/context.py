"""ASGI middleware: request ids, counting, and replies to errors that no handler of the app has answered."""

import logging
import re
import time
import uuid
from collections.abc import Callable, Collection

from fastapi import Request
from fastapi.responses import Response
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from longcat.errors import LithographError
from service.http.edge.paths import path_of
from service.http.error_responses import reply_to_error
from service.observability import metrics
from service.observability.tracing import current_request
from service.wire.errors import wrapped

log = logging.getLogger("lithograph")

_CLIENT_GONE = 499
"""Status under which requests of disconnected clients are counted, as in nginx. No reply carries it."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class RequestContext:
    """Gives every request an id, which its reply carries as ``X-Request-Id``, and counts it.

    A client or proxy may choose the id by sending that header. Two requests can then have one id, so each also has a unique
    one, by which replies find their request.

    In ``request.state``: ``request_id``, ``unique_id``, ``begin`` (``time.monotonic``), ``is_admitted``, and ``outcome``, a
    status to count instead of the reply's.
    """

    def __init__(self, app: ASGIApp, counted: Collection[str]) -> None:
        """``counted``: the paths whose POST requests are counted."""
        self._app = app
        self._counted = frozenset(counted)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        unique_id, begin = str(uuid.uuid4()), time.monotonic()
        request_id = _sent_id(scope) or unique_id
        state = scope["state"] = {
            **scope.get("state", {}),
            "request_id": request_id, "unique_id": unique_id, "begin": begin, "is_admitted": False, "outcome": 0,
        }  # fmt: skip
        status = 0
        is_over = is_gone = False

        async def note_received() -> Message:
            nonlocal is_gone
            message = await receive()
            is_gone = is_gone or (message["type"] == "http.disconnect" and not is_over)
            return message

        async def note_sent(message: Message) -> None:
            nonlocal status, is_over
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = list(message.get("headers", ()))
                if not any(name == b"x-request-id" for name, _ in headers):
                    headers.append((b"x-request-id", request_id.encode()))
                message = {**message, "headers": headers}
            elif message["type"] == "http.response.body":
                is_over = not message.get("more_body", False)
            await send(message)

        try:
            await self._app(scope, note_received, note_sent)
        except ClientDisconnect:
            is_gone = True
        finally:
            if scope["method"] == "POST" and path_of(scope) in self._counted:
                traced = current_request.get()
                trace_id = None if traced is None else traced.trace_id
                outcome = state["outcome"] or (_CLIENT_GONE if is_gone or not status else status)
                metrics.observe_request(outcome, time.monotonic() - begin, trace_id)


def _sent_id(scope: Scope) -> str | None:
    """Return the id that a request was sent with, if it may go into headers and log lines."""
    sent = [value.decode("latin-1") for name, value in scope["headers"] if name == b"x-request-id"]
    return sent[0] if len(sent) == 1 and _REQUEST_ID.fullmatch(sent[0]) else None


class ErrorReplies:
    """Replies to exceptions that the app has not handled: errors from other middleware, and unexpected ones.

    It is inside the middleware that adds headers (request ids, allowed origins), so that these replies have them too.
    """

    def __init__(self, app: ASGIApp, reply: Callable[[Request, LithographError], Response]) -> None:
        """``reply`` logs an error of ours and returns the reply to it."""
        self._app = app
        self._reply = reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_begun = False
        request = Request(scope)

        async def note_sent(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, note_sent)
        except ClientDisconnect:
            raise
        except LithographError as error:
            reply = self._reply(request, error)
        except Exception as error:  # any: every reply is an error body with the request id
            log.exception("request %s failed", request.state.request_id)
            reply = reply_to_error(request, wrapped(error))
        else:
            return
        if not has_begun:
            await reply(scope, receive, send)
