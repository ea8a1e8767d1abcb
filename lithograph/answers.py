"""What the clients send and how they read what comes back: the same for the synchronous and the asynchronous one."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NoReturn, TypedDict

import httpx
from httpx_sse import ServerSentEvent
from pydantic import ValidationError

from longcat.errors import LithographError, UserError
from service.messages import AdapterReport, AdapterStatus
from service.schema import (
    ErrorBody,
    ErrorDetail,
    FieldProblem,
    GenerateResponse,
    JobReport,
    JobStatus,
    PreviewEvent,
    StepEvent,
)

__all__ = [
    "AdapterReport", "AdapterStatus", "ErrorDetail", "Event", "GenerateResponse", "JobReport", "Options", "PreviewEvent",
    "RequestError", "ServiceError", "StepEvent", "body_of", "check", "check_end", "event_of", "result_of", "unreachable",
]  # fmt: skip

Event = StepEvent | PreviewEvent | GenerateResponse
"""What a stream tells: the last one is the result."""
_EVENTS: Mapping[str, type[Event]] = {"progress": StepEvent, "preview": PreviewEvent, "result": GenerateResponse}
_NOT_NOW = frozenset({429, 503})


class Options(TypedDict, total=False):
    """What to draw beside the prompt; what is left out gets the model's default. As in ``POST /generate``."""

    negative_prompt: str
    width: int
    height: int
    steps: int
    guidance_scale: float
    cfg_renorm: bool
    seed: int
    num_images: int
    rewrite_prompt: bool
    adapters: Mapping[str, float] | Sequence[str]
    """Names, or names and scales: ``["ink"]``, ``{"ink@3": 0.8}``."""
    output_format: Literal["png", "jpeg", "webp"]
    timeout_seconds: float


class ServiceError(LithographError):
    """The service could not be reached, or answered with an error."""

    def __init__(
        self, error: ErrorDetail, *, status: int | None = None, retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(error.message)
        self.status = status
        """HTTP's; None if there was no reply, or it is the end of a stream or a job."""
        self.code = error.code
        self.fields: list[FieldProblem] = error.fields
        """Which fields are wrong, with what to give instead."""
        self.retry_after_seconds = retry_after_seconds

    @property
    def is_busy(self) -> bool:
        """Whether the same request may succeed a little later."""
        return self.status in _NOT_NOW


class RequestError(ServiceError, UserError):
    """The service refused what was asked for: the message says which field, and what to give instead."""


def body_of(prompt: str, options: Options, **delivery: object) -> dict[str, Any]:
    """The body of ``POST /generate``."""
    fields: dict[str, Any] = {"prompt": prompt, **options, **delivery}
    if (adapters := options.get("adapters")) is not None:
        scales = adapters if isinstance(adapters, Mapping) else dict.fromkeys(adapters, 1.0)
        fields["adapters"] = [{"name": name, "scale": scale} for name, scale in scales.items()]
    return fields


def check(reply: httpx.Response) -> httpx.Response:
    """The reply, if it is no error; its body must be read. Raises ``RequestError`` or ``ServiceError``."""
    if reply.is_success:
        return reply
    try:
        error = ErrorBody.model_validate_json(reply.content).error
    except ValidationError:  # somebody between here and there answered
        error = ErrorDetail(code="http_error", message=f"{reply.url} answered {reply.status_code}: {reply.text[:200]}")
    kind = RequestError if reply.is_client_error else ServiceError
    seconds = reply.headers.get("retry-after", "")
    raise kind(error, status=reply.status_code, retry_after_seconds=float(seconds) if seconds.isdecimal() else None)


def unreachable(error: httpx.TransportError, url: httpx.URL) -> NoReturn:
    """No reply at all. Raises ``ServiceError``."""
    reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    message = f"{url} cannot be reached ({reason}); is the service running there?"
    raise ServiceError(ErrorDetail(code="unreachable", message=message)) from error


def event_of(sse: ServerSentEvent) -> Event:
    """One event of a stream. Raises ``ServiceError`` if it is the error that ended it."""
    if sse.event == "error":
        raise ServiceError(ErrorBody.model_validate_json(sse.data).error)
    return _EVENTS[sse.event].model_validate_json(sse.data)


def check_end(last: Event | None) -> None:
    """Raise ``ServiceError`` unless the last event of a stream was the result."""
    if not isinstance(last, GenerateResponse):
        raise ServiceError(ErrorDetail(code="cut_off", message="the stream ended before the pictures; ask again"))


def result_of(job: JobReport) -> GenerateResponse | None:
    """The pictures of a job that was submitted by a client; None while it is under way. Raises ``ServiceError``."""
    match job.status:
        case JobStatus.SUCCEEDED:
            if job.result is None:
                message = f"job {job.id} was not asked for with response_format json; fetch {job.result_url}"
                raise ServiceError(ErrorDetail(code="no_json", message=message))
            return job.result
        case JobStatus.FAILED:
            raise ServiceError(job.error or ErrorDetail(code="failed", message=f"job {job.id} failed"))
        case JobStatus.CANCELLED:
            raise ServiceError(ErrorDetail(code="cancelled", message=f"job {job.id} was cancelled"))
    return None
