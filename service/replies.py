"""Replies: pictures as files or JSON, and every error as one body. The one place where errors become HTTP statuses."""

import base64
import logging
from collections.abc import Sequence
from typing import Any

from fastapi.responses import JSONResponse, Response
from fastapi.sse import format_sse_event
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from longcat.errors import DeadlineError, StorageError, UnknownAdapterError, UserError
from service.messages import Failed, RefusedError
from service.picture import MEDIA_TYPES, Rendered, zip_pictures
from service.refusals import BodyTooLargeError, InvalidRequestError, NotJsonError
from service.schema import (
    ErrorBody,
    ErrorDetail,
    FieldProblem,
    GeneratedImage,
    GenerateResponse,
    JobReport,
    ResolvedRequest,
    Timings,
)

log = logging.getLogger("lithograph")

_UNAUTHORIZED = 401


def pictures(
    request_id: str, model_hash: str, request: ResolvedRequest, rendered: Rendered, *, as_json: bool
) -> Response:
    """The answer to a request that was drawn."""
    headers = headers_of(request_id, model_hash, request, rendered)
    if not as_json:
        return pictures_as_files(request, rendered, headers)
    body = pictures_in_json(request_id, model_hash, request, rendered).model_dump_json()
    return Response(body, media_type="application/json", headers=headers)


def pictures_as_files(request: ResolvedRequest, rendered: Rendered, headers: dict[str, str]) -> Response:
    """The picture itself; a zip of several, named by their seeds."""
    if len(rendered.files) == 1:
        return Response(rendered.files[0], media_type=MEDIA_TYPES[request.output_format], headers=headers)
    names = (f"{request.seed + i}.{request.output_format}" for i in range(len(rendered.files)))
    archive = zip_pictures(zip(names, rendered.files, strict=True))
    return Response(archive, media_type="application/zip", headers=headers)


def pictures_in_json(
    request_id: str, model_hash: str, request: ResolvedRequest, rendered: Rendered
) -> GenerateResponse:
    """The pictures in base64, with what made them."""
    return GenerateResponse(
        request_id=request_id,
        model_hash=model_hash,
        prompt=rendered.prompt,
        request=request,
        adapters=list(rendered.adapters),
        timings=rendered.timings,
        media_type=MEDIA_TYPES[request.output_format],
        images=[
            GeneratedImage(seed=request.seed + i, b64=base64.b64encode(file).decode("ascii"))
            for i, file in enumerate(rendered.files)
        ],
    )


def headers_of(request_id: str, model_hash: str, request: ResolvedRequest, rendered: Rendered) -> dict[str, str]:
    """What a reply says beside its pictures."""
    headers = {
        "X-Request-Id": request_id,
        "X-Seed": str(request.seed),
        "X-Model-Hash": model_hash,
        "Server-Timing": ", ".join(f"{name};dur={s * 1000:.1f}" for name, s in phases(rendered.timings).items()),
    }
    if rendered.adapters:
        headers["X-Adapters"] = ", ".join(
            f"{a.reference};scale={a.scale:g};modules={a.modules};sha256={a.sha256}" for a in rendered.adapters
        )
    return headers


def phases(timings: Timings) -> dict[str, float]:
    """Seconds by phase: queue, text, denoise, decode, encode."""
    return {name.removesuffix("_seconds"): seconds for name, seconds in timings.model_dump().items()}


def event(name: str, data: BaseModel) -> bytes:
    """One server-sent event."""
    return format_sse_event(event=name, data_str=data.model_dump_json())


def failure_of(error: Exception, *, request_id: str | None = None) -> Failed:
    """What an error means to a client; what nobody foresaw is logged, and answered with 500."""
    match error:
        case RefusedError():
            return error.failed
        case NotJsonError():
            status, code = 400, "not_json"
        case UnknownAdapterError():
            status, code = 404, "adapter_not_found"
        case BodyTooLargeError():
            status, code = 413, "body_too_large"
        case UserError():
            status, code = 422, "invalid_request"
        case StorageError():
            status, code = 503, "storage_unreachable"
        case DeadlineError():
            status, code = 504, "timeout"
        case _:
            log.error("request %s failed", request_id or "without an id", exc_info=error)
            return Failed(
                status=500, code="engine_error", message=f"{type(error).__name__}: {error}; the log says more"
            )
    return Failed(status=status, code=code, message=str(error))


def reply_to_failure(failed: Failed, fields: Sequence[FieldProblem] = ()) -> JSONResponse:
    """An error in the one shape that all have."""
    body = ErrorBody(error=ErrorDetail(code=failed.code, message=failed.message, fields=list(fields)))
    headers = {} if failed.retry_after_seconds is None else {"Retry-After": str(failed.retry_after_seconds)}
    if failed.status == _UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body.model_dump(), status_code=failed.status, headers=headers)


def reply_to_error(error: Exception) -> JSONResponse:
    """Any error as a reply."""
    match error:
        case InvalidRequestError():
            return reply_to_failure(failure_of(error), error.problems)
        case _:
            return reply_to_failure(failure_of(error))


def reply_to_http_error(error: HTTPException, method: str, path: str) -> JSONResponse:
    """What the framework refuses before any of our endpoints is called: a path or a method that does not exist."""
    headers = error.headers or {}
    match error.status_code:
        case 404:
            code, message = "not_found", f"there is no {path}; /docs lists the endpoints"
        case 405:
            code, message = (
                "method_not_allowed",
                f"{path} does not take {method}; use {headers.get('Allow', 'another')}",
            )
        case _:
            code, message = "http_error", str(error.detail)
    reply = reply_to_failure(Failed(status=error.status_code, code=code, message=message))
    reply.headers.update(headers)
    return reply


NOT_READY = Failed(
    status=503,
    code="not_ready",
    message="the model is not ready; try again when GET /readyz answers 200",
    retry_after_seconds=5,
)
DRAINING = Failed(
    status=503,
    code="draining",
    message="this server is shutting down; try again, on another replica",
    retry_after_seconds=1,
)
ENGINE_ENDED = Failed(
    status=503,
    code="engine_ended",
    message="the engine process died while drawing and is restarting; try again",
    retry_after_seconds=10,
)

Responses = dict[int | str, dict[str, Any]]
"""What an endpoint can answer, for /docs."""
RESPONSES: Responses = {
    202: {"description": "A job, with its address in Location.", "model": JobReport},
    200: {
        "description": "The picture; a zip of several; or JSON with the pictures in base64.",
        "model": GenerateResponse,
        "content": {
            **{media_type: {"schema": {"type": "string", "format": "binary"}} for media_type in MEDIA_TYPES.values()},
            "application/zip": {"schema": {"type": "string", "format": "binary"}},
        },
    },
    400: {"description": "The body is not JSON.", "model": ErrorBody},
    413: {"description": "The body is over the size limit.", "model": ErrorBody},
    422: {"description": "A field is wrong: which, its value, and what to give instead.", "model": ErrorBody},
    404: {"description": "No adapter has that name or version.", "model": ErrorBody},
    429: {"description": "Too many requests are under way; Retry-After says when to come back.", "model": ErrorBody},
    500: {"description": "The model failed.", "model": ErrorBody},
    503: {"description": "Not ready, stopping, or adapter storage cannot be reached.", "model": ErrorBody},
    504: {"description": "The request took longer than timeout_seconds.", "model": ErrorBody},
}
