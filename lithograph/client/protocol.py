"""Request bodies, events and results: the same for the blocking and the asynchronous client."""

import base64
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, Literal, TypedDict

from httpx_sse import ServerSentEvent

from lithograph.client.errors import CutOffError, JobOutcomeError, ServiceError
from longcat.problem import Problem
from service.wire.editing.fields import PICTURE_FIELDS, ResolvedEdit
from service.wire.errors import ErrorBody, ProblemBody
from service.wire.events import PreviewEvent, ResultEvent, StepEvent
from service.wire.job import JobReport, JobStatus
from service.wire.messages import AdapterReport, AdapterStatus
from service.wire.schema import TokenCount

__all__ = [
    "AdapterReport", "AdapterStatus", "ClientEvent", "JobReport", "Options", "PreviewEvent", "ResolvedEdit",
    "ResultEvent", "StepEvent", "TokenCount", "body_of", "check_end", "event_of", "flavour_reason", "result_of",
]  # fmt: skip

ClientEvent = StepEvent | PreviewEvent | ResultEvent
"""An event of a stream; the last one is the result."""
_EVENTS: Mapping[str, type[ClientEvent]] = {kind.name: kind for kind in (StepEvent, PreviewEvent, ResultEvent)}


class Options(TypedDict, total=False):
    """The fields of ``POST /generate`` beside the prompt; one that is left out gets the model's default."""

    negative_prompt: str
    width: int
    height: int
    steps: int
    guidance_scale: float
    cfg_renorm: bool
    seed: int
    num_images: int
    rewrite_prompt: bool
    quality: Literal["exact", "balanced", "fast"]
    reuse_tolerance: float
    adapters: Mapping[str, float] | Sequence[str]
    """Names, or names and scales: ``["ink"]``, ``{"ink@3": 0.8}``."""
    output_format: Literal["png", "jpeg", "webp"]
    priority: Literal["low", "normal", "high"]
    timeout_seconds: float
    image: bytes | Path
    """Picture to start from: a file, or its bytes."""
    mask: bytes | Path
    """Picture of the same shape: what is white in it, or transparent, is changed."""
    strength: float
    expand: Mapping[str, int]
    """Pixels to add: ``{"left": 64, "right": 64}``."""


class UsageQuery(TypedDict, total=False):
    """The parameters of ``GET /v1/usage``."""

    since: date | None
    """First day in UTC; by default this month's."""
    until: date | None
    """Last day in UTC; by default today."""
    key: str | None
    """One key alone; by default all that may be seen."""


def query_of(query: UsageQuery) -> dict[str, str]:
    """Return the parameters as text, without those that are None."""
    return {name: str(value) for name, value in query.items() if value is not None}


def flavour_reason(info: Mapping[str, Any]) -> Problem | None:
    """Return the reason for which a service chose its model, from ``GET /v1/info``; None where its operator chose."""
    reason = info["model"].get("reason")
    return None if reason is None else ProblemBody.model_validate(reason).as_problem()


def body_of(prompt: str, options: Options, **delivery: object) -> dict[str, Any]:
    """Return the body of ``POST /generate``."""
    fields: dict[str, Any] = {"prompt": prompt, **options, **delivery}
    if (adapters := options.get("adapters")) is not None:
        scales = adapters if isinstance(adapters, Mapping) else dict.fromkeys(adapters, 1.0)
        fields["adapters"] = [{"name": name, "scale": scale} for name, scale in scales.items()]
    for name in PICTURE_FIELDS:
        if (picture := fields.get(name)) is not None:
            content = picture.read_bytes() if isinstance(picture, Path) else picture
            fields[name] = base64.b64encode(content).decode("ascii")
    return fields


def event_of(sse: ServerSentEvent) -> ClientEvent:
    """Return one event of a stream. Raises ``ServiceError`` if it is the error that ended the stream."""
    if sse.event == "error":
        raise ServiceError.from_detail(ErrorBody.model_validate_json(sse.data).error)
    return _EVENTS[sse.event].model_validate_json(sse.data)


def check_end(last: ClientEvent | None) -> None:
    """Raise ``CutOffError`` unless the last event of a stream was the result."""
    if not isinstance(last, ResultEvent):
        raise CutOffError("stream_cut_off", "the stream ended before the result", remedy="send the request again")


def result_of(job: JobReport) -> ResultEvent | None:
    """Return the result of a job that a client submitted; None while it is unfinished. Raises ``ServiceError``."""
    match job.status:
        case JobStatus.SUCCEEDED:
            if job.result is None:
                raise JobOutcomeError(
                    "job_without_json",
                    "the request of job {id} did not have response_format json",
                    remedy="fetch {url}",
                    id=job.id,
                    url=job.result_url,
                )
            return job.result
        case JobStatus.FAILED:
            assert job.error is not None
            raise ServiceError.from_detail(job.error)
        case JobStatus.CANCELLED:
            raise JobOutcomeError("job_was_cancelled", "job {id} was cancelled", remedy="submit it again", id=job.id)
    return None
