"""Error replies: an error's code decides the HTTP status here and nowhere else. Mapping logs nothing."""

from collections.abc import Callable, Mapping
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from longcat.errors import LithographError, UserError
from service.http.edge.errors import MessageError
from service.http.edge.paths import route_of
from service.http.requests.json_body import JsonRoute
from service.wire.errors import ErrorBody, ErrorDetail, RecordedError, UnavailableError

STATUSES: Mapping[str, int] = {
    "malformed_request": 400,
    "not_json": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "adapter_not_found": 404,
    "job_not_found": 404,
    "model_not_found": 404,
    "no_adapter_storage": 404,
    "no_jobs_storage": 404,
    "method_not_allowed": 405,
    "request_timeout": 408,
    "conflict": 409,
    "not_finished": 409,
    "cancelled": 410,
    "body_too_large": 413,
    "invalid_request": 422,
    "busy": 429,
    "rate_limit_exceeded": 429,
    "headers_too_large": 431,
    "error": 500,
    "unknown_transfer_encoding": 501,
    "disk_full": 503,
    "storage_unreachable": 503,
    "unavailable": 503,
    "timeout": 504,
}
"""HTTP status by the code of an error's class. A class whose code is not listed has the status of its base class."""

_UNAUTHORIZED = 401

Responses = dict[int | str, dict[str, Any]]
"""The documented responses of an endpoint, by status."""


class NotFoundError(UserError):
    """No endpoint has that path."""

    code = "not_found"


class MethodNotAllowedError(UserError):
    """An endpoint does not have that method."""

    code = "method_not_allowed"


def status_of(error: LithographError) -> int:
    """Return the HTTP status of an error."""
    if isinstance(error, RecordedError):
        return error.http_status
    codes = (error.code, *(kind.code for kind in type(error).__mro__ if issubclass(kind, LithographError)))
    return next(STATUSES[code] for code in codes if code in STATUSES)


def error_body(error: LithographError, request_id: str) -> tuple[int, BaseModel]:
    """Return the status and the body of an error in Lithograph's own shape."""
    return status_of(error), ErrorBody(error=ErrorDetail.of(error, request_id=request_id))


class ErrorShapedRoute(JsonRoute):
    """A route whose errors have another API's shape."""

    error_body: Callable[[LithographError, str], tuple[int, BaseModel]] = staticmethod(error_body)


def error_shape_of(request: Request) -> Callable[[LithographError, str], tuple[int, BaseModel]]:
    """Return the function that makes the status and the body of an error in the shape of the endpoint's API."""
    route = request.scope.get("route") or route_of(request)
    return route.error_body if isinstance(route, ErrorShapedRoute) else error_body


def reply_to_error(request: Request, error: LithographError) -> JSONResponse:
    """Return the reply to a request that failed, in the shape of the endpoint's API."""
    status, body = error_shape_of(request)(error, request.state.request_id)
    headers = {"X-Request-Id": request.state.request_id}
    if isinstance(error, UnavailableError):
        headers["Retry-After"] = str(error.retry_after_seconds)
    if isinstance(error, MessageError):
        headers["Connection"] = "close"
    if status == _UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body.model_dump(mode="json"), status_code=status, headers=headers)


NOT_READY: Responses = {503: {"description": "Not ready, or shutting down.", "model": ErrorBody}}
GENERATE_ERRORS: Responses = {
    400: {"description": "The body is not JSON.", "model": ErrorBody},
    404: {"description": "No adapter has that name or version.", "model": ErrorBody},
    408: {"description": "The request did not arrive in time.", "model": ErrorBody},
    413: {"description": "The body exceeds the size limit.", "model": ErrorBody},
    422: {"description": "A field is wrong: its name, its value, and what to give instead.", "model": ErrorBody},
    429: {
        "description": "The queue is full, or a limit of the key is reached; Retry-After gives the seconds to wait.",
        "model": ErrorBody,
    },
    431: {"description": "The headers exceed a limit.", "model": ErrorBody},
    500: {"description": "The model failed.", "model": ErrorBody},
    503: {
        "description": "Not ready, shutting down, disk full, or adapter storage cannot be reached.",
        "model": ErrorBody,
    },
    504: {"description": "The request took longer than timeout_seconds.", "model": ErrorBody},
}
