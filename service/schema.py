"""Request, response, job and error body: what goes over the wire. The client reads it too. No torch.

A request is checked twice: its shape by pydantic (``refusals.parse``), then against the model and this server
(``Limits.resolve``), which also fills in defaults.
"""

import base64
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

GRID_PX = 64
SMALLEST_PX = 64
LARGEST_SEED = 2**63 - 1

MAX_ADAPTERS = 4
"""Most adapters of one request: each slot that it holds is one that others wait for."""

OutputFormat = Literal["png", "jpeg", "webp"]


class AdapterChoice(BaseModel):
    """A LoRA adapter, and how strongly it is applied."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: Annotated[str, Field(min_length=1, description="ink: its latest version; ink@3: that version.")]
    scale: Annotated[float, Field(ge=-10, le=10, allow_inf_nan=False, description="1 is as it was trained.")] = 1.0


class Drawing(BaseModel):
    """What every way of asking for pictures has in common. Everything but the prompt has a default that fits the model."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    prompt: Annotated[str, Field(min_length=1, pattern=r"\S", description="What to draw, in Chinese or English.")]
    negative_prompt: Annotated[str, Field(description="What to keep away from; needs guidance_scale over 1.")] = ""
    steps: Annotated[int | None, Field(ge=1, description="Denoising steps.")] = None
    guidance_scale: Annotated[
        float | None,
        Field(ge=0, le=30, allow_inf_nan=False, description="Classifier-free guidance; 1 or less turns it off."),
    ] = None
    seed: Annotated[
        int | None,
        Field(ge=0, le=LARGEST_SEED, description="Picture i of a request is drawn from seed + i. Random if absent."),
    ] = None
    cfg_renorm: Annotated[bool, Field(description="Keep each token's guided norm at most the conditional one's.")] = (
        True
    )
    rewrite_prompt: Annotated[bool, Field(description="Let the model's text encoder enrich the prompt first.")] = False
    adapters: Annotated[
        tuple[AdapterChoice, ...], Field(max_length=MAX_ADAPTERS, description="LoRA adapters, applied together.")
    ] = ()
    timeout_seconds: Annotated[
        float | None,
        Field(
            gt=0, allow_inf_nan=False, description="From arrival to reply; past it, 504, and no more steps are made."
        ),
    ] = None


class GenerateRequest(Drawing):
    """The body of ``POST /generate``."""

    model_config = ConfigDict(
        validate_by_name=True,
        validate_by_alias=True,
        json_schema_extra={
            "examples": [
                {"prompt": "一个红苹果"},
                {"prompt": "a red apple on a blue background", "seed": 7, "steps": 16, "response_format": "json"},
            ]
        },
    )

    width: Annotated[int | None, Field(ge=SMALLEST_PX, multiple_of=GRID_PX, description="In px, a multiple of 64.")] = (
        None
    )
    height: Annotated[
        int | None, Field(ge=SMALLEST_PX, multiple_of=GRID_PX, description="In px, a multiple of 64.")
    ] = None
    num_images: Annotated[int, Field(ge=1, description="Pictures to draw.")] = 1
    output_format: Annotated[OutputFormat, Field(description="File format of the pictures.")] = "png"
    stream: Annotated[
        bool, Field(description="Reply with server-sent events: progress after every step, then the result as JSON.")
    ] = False
    previews: Annotated[bool, Field(description="With stream: small pictures of what is becoming, too.")] = False
    as_job: Annotated[
        bool, Field(alias="async", description="Reply 202 at once, with the address of a job to ask for the pictures.")
    ] = False
    webhook_url: Annotated[
        str | None,
        Field(description="With async: told, signed, when the job is over; this server has to allow its host."),
    ] = None
    response_format: Annotated[
        Literal["binary", "json"],
        Field(description="binary: the picture itself, or a zip of several; json: base64 with seed and timings."),
    ] = "binary"


class ResolvedRequest(BaseModel):
    """A valid request with every default filled in: it makes the same picture each time. What a PNG carries."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: str
    negative_prompt: str
    width: int
    height: int
    steps: int
    guidance_scale: float
    seed: int
    num_images: int
    cfg_renorm: bool
    rewrite_prompt: bool
    output_format: OutputFormat
    adapters: tuple[AdapterChoice, ...] = ()


class AppliedAdapter(BaseModel):
    """Proof of what was applied."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    version: int
    scale: float
    sha256: Annotated[str, Field(description="Of the adapter's file.")]
    modules: Annotated[int, Field(description="Layers of the model that it changed.")]

    @property
    def reference(self) -> str:
        """``name@version``."""
        return f"{self.name}@{self.version}"


class Timings(BaseModel):
    """Seconds that a request spent in each phase."""

    model_config = ConfigDict(frozen=True)

    queue_seconds: float = 0.0
    text_seconds: float
    denoise_seconds: float
    decode_seconds: float
    encode_seconds: float
    """Writing PNG, JPEG or WebP."""


class GeneratedImage(BaseModel):
    """One picture of a JSON response."""

    seed: int
    b64: Annotated[str, Field(repr=False, description="The file in base64.")]

    @property
    def content(self) -> bytes:
        """The file."""
        return base64.b64decode(self.b64)

    def save(self, path: str | Path) -> None:
        """Write the file."""
        Path(path).write_bytes(self.content)


class GenerateResponse(BaseModel):
    """The body with ``response_format: json``."""

    request_id: str
    model_hash: str
    prompt: Annotated[str, Field(description="The prompt that was drawn: the rewritten one, if it was.")]
    request: ResolvedRequest
    adapters: list[AppliedAdapter]
    timings: Timings
    media_type: str
    images: list[GeneratedImage]


class StepEvent(BaseModel):
    """The data of the server-sent event ``progress``."""

    image: int
    step: int
    steps: int


class PreviewEvent(BaseModel):
    """The data of the server-sent event ``preview``."""

    image: int
    step: int
    media_type: str = "image/jpeg"
    b64: str


class FieldProblem(BaseModel):
    """One field that is wrong."""

    model_config = ConfigDict(frozen=True)

    field: Annotated[str, Field(description="Its name; empty for the body as a whole.")]
    value: Annotated[str, Field(description="What was given, shortened; empty if nothing was.")]
    problem: str
    remedy: str


class ErrorDetail(BaseModel):
    """What went wrong."""

    code: str
    message: str
    fields: list[FieldProblem] = []


class ErrorBody(BaseModel):
    """The body of every reply that is not a picture."""

    error: ErrorDetail


class JobStatus(StrEnum):
    """How far a job is."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class JobReport(BaseModel):
    """The body of ``GET /v1/jobs/{id}``, and the data of a webhook."""

    id: str
    status: JobStatus
    created_at: datetime
    started_at: Annotated[datetime | None, Field(description="When its first step was made.")] = None
    finished_at: datetime | None = None
    expires_at: Annotated[datetime | None, Field(description="When it will be forgotten, at the latest.")] = None
    steps_made: Annotated[int, Field(description="Of all its pictures together.")] = 0
    steps: int
    result_url: Annotated[
        str | None, Field(description="Once it succeeded: answers as POST /generate would have answered.")
    ] = None
    result: Annotated[GenerateResponse | None, Field(description="Once it succeeded, with response_format json.")] = (
        None
    )
    error: Annotated[ErrorDetail | None, Field(description="Why it failed.")] = None


class JobEvent(BaseModel):
    """The body of a webhook."""

    type: Annotated[str, Field(description="job.succeeded, job.failed or job.cancelled.")]
    timestamp: datetime
    data: JobReport
