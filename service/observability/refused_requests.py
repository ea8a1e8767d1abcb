"""Log lines of requests that are rejected before they reach the engine."""

import logging
from typing import Any

from longcat.errors import LithographError
from longcat.logs import log_event
from longcat.problem import shorten
from service.observability.redaction import without_text

log = logging.getLogger("lithograph")

_MESSAGE_CHARACTERS = 2000
"""Longest message in the log."""


def log_refused_request(
    error: LithographError,
    *,
    status: int,
    request_id: str,
    key: str | None = None,
    endpoint: str | None = None,
    with_text: bool = False,
    trace_id: str | None = None,
) -> None:
    """Log the one line about a rejected request.

    ``status`` is that of the reply, even if it can no longer be sent; ``key`` is the name of the request's API key, and
    ``endpoint`` the path of its route.
    """
    fields = error_fields(error, status=status, with_text=with_text)
    log_event(log, "request_refused", request_id=request_id, key=key, endpoint=endpoint, **fields, trace_id=trace_id)


def error_fields(error: LithographError, *, status: int, with_text: bool) -> dict[str, Any]:
    """Return the fields of a log line about an error; ``with_text`` keeps text from the request in its message."""
    message = shorten(str(error) if with_text else without_text(error), _MESSAGE_CHARACTERS)
    return {"status": status, "code": error.code, "message": message}
