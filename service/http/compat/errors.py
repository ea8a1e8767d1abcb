"""Errors in OpenAI's shape, and in vLLM's, which is OpenAI's with other values."""

from typing import Annotated

from pydantic import BaseModel, Field

from longcat.errors import LithographError, UserError
from longcat.validation import UNKNOWN_FIELD_CODES
from service.http.error_responses import ErrorShapedRoute, Responses, status_of

_INVALID = 422
"""Our status for an invalid request; OpenAI and vLLM have 400."""
_OPENAI_TYPES = {401: "authentication_error", 429: "rate_limit_error"}
_VLLM_TYPES = {401: "AuthenticationError", 404: "NotFoundError"}
_SERVER_ERROR = 500


class OpenAIError(BaseModel):
    """An error as OpenAI's clients expect it."""

    message: str
    type: str
    param: str | None = None
    code: str | int | None = None


class OpenAIErrorBody(BaseModel):
    """The body of every error."""

    error: Annotated[OpenAIError, Field(description="The request's id is in the header X-Request-Id.")]


class UnknownModelError(UserError):
    """The request names an unknown model."""

    code = "model_not_found"


class VllmInputError(UserError):
    """A request that vLLM answers with ``InvalidUserInput``."""


def openai_error(error: LithographError, _request_id: str) -> tuple[int, OpenAIErrorBody]:
    """Return the status and the body of an error in OpenAI's shape, from its code and its fields."""
    status = status_of(error)
    once = list({(p.field, p.code): p for p in error.problems}.values())  # size is both our width and our height
    param, code = once[0].field or None, error.code
    if status == _INVALID:
        status = 400
        if param is not None:
            code = "unknown_parameter" if once[0].code in UNKNOWN_FIELD_CODES else "invalid_value"
    kind = _OPENAI_TYPES.get(status, "invalid_request_error" if status < _SERVER_ERROR else "server_error")
    message = str(LithographError.of(once))
    return status, OpenAIErrorBody(error=OpenAIError(message=message, type=kind, param=param, code=code))


def vllm_error(error: LithographError, _request_id: str) -> tuple[int, OpenAIErrorBody]:
    """Return the status and the body of an error in vLLM's shape, which has the status as its code."""
    status = status_of(error)
    status = 400 if status == _INVALID else status
    kind = _VLLM_TYPES.get(status, "BadRequestError" if status < _SERVER_ERROR else "InternalServerError")
    if isinstance(error, VllmInputError):
        kind = "InvalidUserInput"
    return status, OpenAIErrorBody(error=OpenAIError(message=str(error), type=kind, code=status))


class OpenAIRoute(ErrorShapedRoute):
    """A route whose errors have OpenAI's shape."""

    error_body = staticmethod(openai_error)


class VllmRoute(ErrorShapedRoute):
    """A route whose errors have vLLM's shape."""

    error_body = staticmethod(vllm_error)


ERRORS: Responses = {
    **{status: {"model": OpenAIErrorBody} for status in (400, 404, 413, 429, 500, 503, 504)},
    "default": {"description": "Any other error.", "model": OpenAIErrorBody},
}
_REFERENCE = {"application/json": {"schema": {"$ref": f"#/components/schemas/{OpenAIErrorBody.__name__}"}}}
JSON_ERRORS: Responses = {
    status: {"description": response.get("description", "An error."), "content": _REFERENCE}
    for status, response in ERRORS.items()
}
"""``ERRORS`` of routes that reply with text: FastAPI would document their errors as text, too."""
