"""Bodies of ``/v1/files`` and ``/v1/batches``, named as OpenAI's clients know them."""

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Endpoint = Literal["/v1/images/generations", "/v1/images/edits"]
Purpose = Literal["batch", "batch_output"]
MOST_METADATA = 16
_Seconds = Annotated[int, Field(ge=3600, le=2_592_000)]
_MetadataKey = Annotated[str, Field(max_length=64)]
_MetadataValue = Annotated[str, Field(max_length=512)]
_STRICT = ConfigDict(extra="forbid", strict=True, frozen=True)


class BatchStatus(StrEnum):
    """Status of a batch."""

    VALIDATING = "validating"
    FAILED = "failed"
    """Its file is wrong: no line has been generated."""
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


OVER = frozenset({BatchStatus.FAILED, BatchStatus.COMPLETED, BatchStatus.EXPIRED, BatchStatus.CANCELLED})
"""The statuses that never change."""


class FileObject(BaseModel):
    """A file."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: Annotated[int, Field(description="Time at which it is removed.")]
    filename: str
    purpose: Purpose
    status: Literal["processed"] = "processed"


class FileList(BaseModel):
    """A page of files."""

    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(BaseModel):
    """The reply to the removal of a file."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class ExpiresAfter(BaseModel):
    """The time after which files are removed, if that is before the server removes them."""

    model_config = _STRICT

    anchor: Literal["created_at"]
    seconds: _Seconds


class CreateBatchRequest(BaseModel):
    """The body of ``POST /v1/batches``."""

    model_config = ConfigDict(
        **_STRICT,
        json_schema_extra={
            "examples": [{"input_file_id": "file-1", "endpoint": "/v1/images/generations", "completion_window": "24h"}]
        },
    )

    input_file_id: Annotated[str, Field(min_length=1, description="A file with the purpose batch: JSON Lines.")]
    endpoint: Annotated[Endpoint, Field(description="The url of all its lines.")]
    completion_window: Annotated[Literal["24h"], Field(description="What is not done by then expires.")]
    metadata: Annotated[dict[_MetadataKey, _MetadataValue] | None, Field(max_length=MOST_METADATA)] = None
    output_expires_after: ExpiresAfter | None = None


class BatchError(BaseModel):
    """A problem of a batch's file."""

    model_config = ConfigDict(frozen=True)

    code: str
    message: str
    param: str | None = None
    line: Annotated[int | None, Field(description="From 1; null for the whole file.")] = None


class BatchErrors(BaseModel):
    """The problems of a batch's file, at most 20 and the number of the others."""

    object: Literal["list"] = "list"
    data: tuple[BatchError, ...]


class RequestCounts(BaseModel):
    """Lines by outcome."""

    model_config = ConfigDict(frozen=True)

    total: int = 0
    completed: int = 0
    failed: Annotated[int, Field(description="Lines of the error file.")] = 0


class BatchObject(BaseModel):
    """A batch. Times are in seconds since 1970."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: Endpoint
    errors: BatchErrors | None = None
    input_file_id: str
    completion_window: str
    status: BatchStatus
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts
    metadata: dict[str, str] | None = None


class BatchList(BaseModel):
    """A page of batches, the newest first."""

    object: Literal["list"] = "list"
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class BatchLine(BaseModel):
    """One line of a batch's file."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)

    custom_id: Annotated[str, Field(min_length=1, max_length=512, description="Repeated in the line of the result.")]
    method: Literal["POST"]
    url: str
    body: dict[str, Any]
