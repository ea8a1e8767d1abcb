"""Replies: pictures as files or JSON, and every error as one body. The one place where errors become HTTP statuses."""

import base64
import logging
from typing import Any

from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from longcat.errors import UserError
from service.picture import MEDIA_TYPES, Rendered, zip_pictures
from service.schema import (
    BodyTooLargeError,
    ErrorBody,
    ErrorDetail,
    GeneratedImage,
    GenerateResponse,
    InvalidRequestError,
    NotJsonError,
    ResolvedRequest,
    Timings,
)

log = logging.getLogger("lithograph")


def pictures_as_files(request: ResolvedRequest, rendered: Rendered, headers: dict[str, str]) -> Response:
    """The picture itself; a zip of several, named by their seeds."""
    if len(rendered.files) == 1:
        return Response(rendered.files[0], media_type=MEDIA_TYPES[request.output_format], headers=headers)
    names = (f"{request.seed + i}.{request.output_format}" for i in range(len(rendered.files)))
    archive = zip_pictures(zip(names, rendered.files, strict=True))
    return Response(archive, media_type="application/zip", headers=headers)


def pictures_as_json(
    request_id: str, model_hash: str, request: ResolvedRequest, rendered: Rendered, headers: dict[str, str]
) -> Response:
    """The pictures in base64, with what made them."""
    body = GenerateResponse(
        request_id=request_id,
        model_hash=model_hash,
        prompt=rendered.prompt,
        request=request,
        timings=rendered.timings,
        media_type=MEDIA_TYPES[request.output_format],
        images=[
            GeneratedImage(seed=request.seed + i, b64=base64.b64encode(file).decode("ascii"))
            for i, file in enumerate(rendered.files)
        ],
    )
    return Response(body.model_dump_json(), media_type="application/json", headers=headers)


def phases(timings: Timings) -> dict[str, float]:
    """Seconds by phase: queue, text, denoise, decode, encode."""
    return {name.removesuffix("_seconds"): seconds for name, seconds in timings.model_dump().items()}


def error_reply(status: int, code: str, message: str, *, retry_after: int | None = None, **detail: Any) -> JSONResponse:
    """An error in the one shape that all have; ``detail`` goes into its body."""
    body = ErrorBody(error=ErrorDetail(code=code, message=message, **detail))
    headers = None if retry_after is None else {"Retry-After": str(retry_after)}
    return JSONResponse(body.model_dump(), status_code=status, headers=headers)


def reply_to_error(error: Exception) -> JSONResponse:
    """Any error as a reply; what nobody foresaw is logged and answered with 500."""
    match error:
        case InvalidRequestError():
            return error_reply(422, "invalid_request", str(error), fields=error.problems)
        case NotJsonError():
            return error_reply(400, "not_json", str(error))
        case BodyTooLargeError():
            return error_reply(413, "body_too_large", str(error))
        case UserError():
            return error_reply(422, "invalid_request", str(error))
        case HTTPException():
            code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
            reply = error_reply(error.status_code, code, str(error.detail))
            reply.headers.update(error.headers or {})
            return reply
        case _:
            log.error("request failed", exc_info=error)
            return error_reply(500, "internal_error", f"{type(error).__name__}; the log says more")


RESPONSES: dict[int | str, dict[str, Any]] = {
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
    500: {"description": "The model failed.", "model": ErrorBody},
    503: {"description": "The model is still loading.", "model": ErrorBody},
}
