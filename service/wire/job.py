"""Asynchronous jobs as HTTP shows them: the body of ``GET /v1/jobs/{id}``, and of a webhook."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, Field

from service.wire.errors import ErrorDetail
from service.wire.events import ResultEvent


class JobStatus(StrEnum):
    """Status of a job."""

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
    started_at: Annotated[datetime | None, Field(description="Time of its first step.")] = None
    finished_at: datetime | None = None
    expires_at: Annotated[datetime | None, Field(description="Time at which it is removed, at the latest.")] = None
    steps_made: Annotated[int, Field(description="Steps of all its pictures together.")] = 0
    steps: int
    result_url: Annotated[
        str | None, Field(description="Set on success: replies as POST /generate would have replied.")
    ] = None
    result: Annotated[ResultEvent | None, Field(description="Set on success, with response_format json.")] = None
    error: Annotated[ErrorDetail | None, Field(description="The error of a failed job.")] = None


class JobEvent(BaseModel):
    """The body of a webhook."""

    id: Annotated[str, Field(description="The header webhook-id: the same in every delivery of one end of a job.")]
    type: Annotated[str, Field(description="job.succeeded, job.failed or job.cancelled.")]
    timestamp: Annotated[datetime, Field(description="Time of the job's end.")]
    data: JobReport
