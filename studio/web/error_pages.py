"""Replies to errors: a page or a toast for browsers, JSON for programs. Status and headline follow from the error."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from lithograph.client.errors import RequestError, ServiceError
from longcat.errors import ClusterError, DiskFullError, HubError, LithographError, StorageError, UserError
from longcat.problem import Problem, show
from longcat.storage.disk import disk_full, is_disk_full, path_of
from longcat.validation import problems_in
from studio.web.errors import (
    ConfigFileError,
    FormError,
    HttpError,
    ImportRefusedError,
    PageNotFoundError,
    UnforeseenError,
)
from studio.web.language import FALLBACK, Language, load_languages
from studio.web.pages import is_fragment, render

log = logging.getLogger("lithograph.studio")

_UNAUTHORIZED, _NOT_FOUND = 401, 404
_STATUS: Mapping[str, int] = {
    "malformed_request": 400,
    "unauthorized": _UNAUTHORIZED,
    "forbidden": 403,
    "not_found": _NOT_FOUND,
    "adapter_not_found": _NOT_FOUND,
    "job_not_found": _NOT_FOUND,
    "request_timeout": 408,
    "job_state": 409,
    "too_large": 413,
    "wrong_host": 421,
    "too_many_attempts": 429,
    "headers_too_large": 431,
    "internal_error": 500,
    "unknown_transfer_encoding": 501,
    "cluster_unreachable": 503,
    "hub_unreachable": 503,
    "disk_full": 503,
    "storage_unreachable": 503,
    "storage_key_not_found": 503,
    "storage_conflict": 503,
    "draining": 503,
    "too_many_connections": 503,
    "import_timeout": 504,
}
"""HTTP statuses by error code. Other user errors are 422, other errors of the service 502."""
_OWN_HEADLINE = frozenset({"adapter_not_found", "job_not_found", "job_state"})
"""Codes of user errors whose problem is the headline itself."""


@dataclass(frozen=True, kw_only=True)
class FieldMessage:
    """A problem of one field, in the reader's language."""

    field: str
    label: str
    message: str


@dataclass(frozen=True, kw_only=True)
class ErrorView:
    """An error in the reader's language."""

    message: str
    """The headline."""
    fields: tuple[FieldMessage, ...]
    details: tuple[Problem, ...]
    """Problems that are not about a field of the page."""


def add_error_pages(app: FastAPI) -> None:
    """Register the error handlers. The guard, which wraps the app, answers unexpected exceptions."""
    for kind in (HTTPException, RequestValidationError, LithographError):
        app.add_exception_handler(kind, _reply_to_error)


def reply_to(request: Request, exception: Exception) -> Response:
    """Return the reply to an exception. A page that requires a login redirects to it."""
    language: Language = request.app.state.pages.language(request)
    error = error_of(exception)
    status = status_of(error)
    if status == _UNAUTHORIZED and _is_page(request):
        return RedirectResponse("/login", status_code=303)
    view = view_of(language, error)
    if is_fragment(request):
        reply: Response = render(request, "error_toast.html", status=status, error=view)
        reply.headers["HX-Retarget"] = "#toasts"
        reply.headers["HX-Reswap"] = "beforeend"
        reply.headers["HX-Reselect"] = "unset"  # the whole reply has another status
        if status == _UNAUTHORIZED:
            reply.headers["HX-Redirect"] = "/login"
        return reply
    if "text/html" in request.headers.get("accept", ""):
        return render(request, "error.html", status=status, error=view)
    headers = {"WWW-Authenticate": "Bearer"} if status == _UNAUTHORIZED else {}
    return JSONResponse(_json_of(language, error), status_code=status, headers=headers)


def error_outside_pages(error: LithographError, _request_id: str) -> tuple[int, bytes]:
    """Return status and JSON of a connection's error, in English: without a request the language is unknown."""
    return status_of(error), json.dumps(_json_of(load_languages()[FALLBACK], error)).encode()


def _json_of(language: Language, error: LithographError) -> dict[str, Any]:
    message = view_of(language, error).message
    return {"error": {"code": error.code, "message": message, "problems": [language.tell(p) for p in error.problems]}}


def error_of(exception: Exception) -> LithographError:
    """Return an exception as an error of the tree; log an unexpected one."""
    match exception:
        case LithographError():
            return exception
        case HTTPException(status_code=404):
            return PageNotFoundError()
        case RequestValidationError():
            return _of_address(exception)
        case HTTPException(status_code=status):
            error = HttpError("http_error", "the studio cannot do this (HTTP {status})", status=status)
            error.status = status
            return error
    if is_disk_full(exception):
        return disk_full(path_of(exception))
    log.error("a page failed", exc_info=exception)
    return UnforeseenError(
        "internal_error", "the studio failed ({kind}: {reason})", remedy="read its log",
        kind=type(exception).__name__, reason=str(exception),
    )  # fmt: skip


def status_of(error: LithographError) -> int:
    """Return the HTTP status of an error."""
    match error:
        case HttpError():
            return error.status
        case ServiceError(code="unreachable") | ServiceError(is_busy=True):
            return 503
        case ServiceError() if not isinstance(error, UserError):
            return 502
    return _STATUS.get(error.code, 422 if isinstance(error, UserError) else 500)


def view_of(language: Language, error: LithographError) -> ErrorView:
    """Return an error in the reader's language: a headline, and its problems by field."""
    key = _headline(error)
    if not key:
        return ErrorView(message=language.sentence(error.problems[0]), fields=(), details=error.problems[1:])
    fields, details = [], []
    for problem in error.problems:
        name = problem.field.partition(".")[0]
        if name and (isinstance(error, FormError) or language.has(f"field.{name}")):
            value = "" if problem.value is None else f"{show(problem.value)}{language('error.colon')}"
            message = f"{value}{language.explain(problem)}"
            fields.append(FieldMessage(field=name, label=language.label(name), message=message))
        else:
            details.append(problem)
    return ErrorView(message=language(key), fields=tuple(fields), details=tuple(details))


def _headline(error: LithographError) -> str:
    """Return the key of the headline; empty where the problem itself is the headline."""
    match error:
        case ServiceError(code="unreachable"):
            return "error.service_unreachable"
        case ServiceError(is_busy=True):
            return "error.service_busy"
        case FormError():
            return "error.form"
        case ConfigFileError():
            return "error.config_file"
        case ImportRefusedError():
            return "error.import_refused"
        case _ if error.code in _OWN_HEADLINE and not isinstance(error, ServiceError):
            return ""
        case RequestError():
            return "error.service_refused"
        case ServiceError():
            return "error.service"
        case DiskFullError():
            return ""
        case HubError():
            return "error.hub"
        case StorageError():
            return "error.storage"
        case ClusterError():
            return "error.cluster"
        case UserError():
            return "error.refused"
    return ""


def _of_address(error: RequestValidationError) -> LithographError:
    """Return the error of a URL with invalid parts: not found for its path, wrong fields for its query."""
    parts = [{**part, "loc": part["loc"][1:]} for part in error.errors()]
    if any(part["loc"][0] == "path" for part in error.errors()):
        return PageNotFoundError()
    return UserError.of(problems_in(parts, BaseModel))


async def _reply_to_error(request: Request, exception: Exception) -> Response:
    return reply_to(request, exception)


def _is_page(request: Request) -> bool:
    return request.method == "GET" and not is_fragment(request) and "text/html" in request.headers.get("accept", "")
