"""Errors of the client: error replies of the service, with code and problems, and missing replies.

::

    ServiceError
    ├── RequestError         the request is invalid: its problems name the fields
    ├── UnreachableError     no reply came
    ├── CutOffError          a stream ended before its result
    └── JobOutcomeError      a job has no result for the client
"""

from typing import Self

import httpx
from pydantic import ValidationError

from longcat.errors import LithographError, UserError
from longcat.problem import Problem
from service.wire.errors import ErrorBody, ErrorDetail, ProblemBody

_BUSY = frozenset({429, 503})


class ServiceError(LithographError):
    """The service replied with an error, or did not reply."""

    code = "service_error"
    status: int | None = None
    """The HTTP status; None if there was no reply, or if the error ended a stream or a job."""
    request_id: str = ""
    """The request's id, as in the service's log."""
    retry_after_seconds: float | None = None

    @classmethod
    def from_detail(cls, detail: ErrorDetail, *, status: int | None = None) -> Self:
        """Return the error that a reply, an event or a job describes, with the service's own code."""
        error = cls.of(problem.as_problem() for problem in detail.problems)
        error.code, error.request_id, error.status = detail.code, detail.request_id, status
        return error

    @property
    def is_busy(self) -> bool:
        """Return True if the same request may succeed a little later."""
        return self.status in _BUSY


class RequestError(ServiceError, UserError):
    """The request is invalid: its problems name the fields, and their remedies the values to give."""


class UnreachableError(ServiceError):
    """No reply came."""

    code = "unreachable"


class CutOffError(ServiceError):
    """A stream ended before its result."""

    code = "cut_off"


class JobOutcomeError(ServiceError):
    """A job has no result for the client."""

    code = "no_result"


def check(reply: httpx.Response) -> httpx.Response:
    """Return a successful reply; its body must have been read. Raises ``RequestError`` or ``ServiceError``."""
    if reply.is_success:
        return reply
    kind = RequestError if reply.is_client_error else ServiceError
    seconds = reply.headers.get("retry-after", "")
    error = kind.from_detail(_detail(reply), status=reply.status_code)
    error.retry_after_seconds = float(seconds) if seconds.isdecimal() else None
    raise error


def _detail(reply: httpx.Response) -> ErrorDetail:
    """Return the error in a reply; one of its own if another program has replied, a proxy for instance."""
    try:
        return ErrorBody.model_validate_json(reply.content).error
    except ValidationError:
        problem = Problem(
            code="not_the_service",
            template="{url} replied {status}: {text}",
            remedy_template="check that the address is the service's",
            details={"url": str(reply.url), "status": reply.status_code, "text": reply.text[:200]},
        )
        return ErrorDetail(code="http_error", message=str(problem), problems=[ProblemBody.of(problem)])


def unreachable(error: httpx.TransportError, url: httpx.URL) -> UnreachableError:
    """Return the error of a request without a reply."""
    return UnreachableError(
        "service_unreachable",
        "{url} cannot be reached ({reason})",
        remedy="check that the service runs there",
        url=str(url),
        reason=f"{type(error).__name__}: {error}" if str(error) else type(error).__name__,
    )
