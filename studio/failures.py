"""Every error as something that a person can read: a page, or a message on the page that is there. For programs, JSON."""

import logging
import textwrap
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from lithograph.answers import RequestError, ServiceError
from longcat.errors import HubError, LithographError, StorageError, UnknownAdapterError, UserError
from studio.language import Language
from studio.page_error import PageError, Problem
from studio.pages import is_fragment, render

log = logging.getLogger("lithograph.studio")

_SHOWN_CHARACTERS = 60
"""Of a value that was refused, which may be a long prompt."""
_UNAUTHORIZED = 401
_NOT_FOUND = 404


def add_failures(app: FastAPI) -> None:
    """Have the app answer errors here; those that nobody foresaw are the guard's, which stands outside."""
    for kind in (HTTPException, LithographError):
        app.add_exception_handler(kind, _reply_to_error)


def reply_to_page_error(request: Request, error: PageError) -> Response:
    """What is shown. Whoever is not logged in is sent to do so."""
    language: Language = request.app.state.pages.language(request)
    if error.status == _UNAUTHORIZED and _is_page(request):
        return RedirectResponse("/login", status_code=303)
    said = said_of(language, error)
    if is_fragment(request):
        reply: Response = render(request, "trouble_toast.html", status=error.status, error=error, **said)
        reply.headers["HX-Retarget"] = "#toasts"
        reply.headers["HX-Reswap"] = "beforeend"
        if error.status == _UNAUTHORIZED:
            reply.headers["HX-Redirect"] = "/login"
        return reply
    if "text/html" in request.headers.get("accept", ""):
        return render(request, "trouble.html", status=error.status, error=error, **said)
    headers = {"WWW-Authenticate": "Bearer"} if error.status == _UNAUTHORIZED else {}
    body = {"code": error.key.partition(".")[2], "message": said["message"], "detail": error.detail, **said}
    return JSONResponse({"error": body}, status_code=error.status, headers=headers)


def said_of(language: Language, error: PageError) -> dict[str, Any]:
    """An error in the reader's words: ``message``, and by field its name, what is wrong with it, and whose words."""
    fields = [
        {
            "field": problem.field,
            "label": language(f"field.{problem.field}") if language.has(f"field.{problem.field}") else problem.field,
            "message": language(problem.key, **_retold(language, problem.values)),
            "details": problem.details,
        }
        for problem in error.problems
    ]
    return {"message": language(error.key, **error.values), "fields": fields}


def _retold(language: Language, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a text, ``detail`` in the reader's language where it can be."""
    detail = values.get("detail", "")
    return dict(values) | {"detail": language.retell(detail) or detail}


def page_error_of(error: Exception) -> PageError:
    """What an error means to a reader; what nobody foresaw is logged."""
    match error:
        case PageError():
            return error
        case HTTPException(status_code=404):
            return PageError("error.not_found", status=_NOT_FOUND)
        case HTTPException():
            return PageError("error.http", status=error.status_code, detail=str(error.detail), value=error.status_code)
        case ServiceError(code="unreachable"):
            return PageError("error.service_unreachable", status=503, detail=str(error))
        case ServiceError(is_busy=True):
            return PageError("error.service_busy", status=503, detail=str(error))
        case RequestError(fields=[_, *_]):
            problems = tuple(
                Problem(
                    field=field.field.partition(".")[0],
                    key="error.service_refuses",
                    values={"value": textwrap.shorten(str(field.value), _SHOWN_CHARACTERS, placeholder="…")},
                    details=(field.problem, field.remedy),
                )
                for field in error.fields
            )
            return PageError("error.service_refused", status=422, detail=str(error), problems=problems)
        case UnknownAdapterError():
            return PageError("error.not_found", status=_NOT_FOUND, detail=str(error))
        case UserError():  # among them what the service refused
            return PageError("error.refused", status=422, detail=str(error))
        case HubError():
            return PageError("error.hub", status=503, detail=str(error))
        case StorageError():
            return PageError("error.storage", status=503, detail=str(error))
        case ServiceError():
            return PageError("error.service", status=502, detail=str(error))
        case _:
            log.error("a page failed", exc_info=error)
            return PageError("error.unforeseen", status=500, detail=f"{type(error).__name__}: {error}")


async def _reply_to_error(request: Request, error: Exception) -> Response:
    return reply_to_page_error(request, page_error_of(error))


def _is_page(request: Request) -> bool:
    return request.method == "GET" and not is_fragment(request) and "text/html" in request.headers.get("accept", "")
