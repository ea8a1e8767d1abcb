"""A job: its request, which never changes, its state, and its end. Both stores of jobs keep these."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict

from longcat.errors import LithographError
from service.http.error_responses import status_of
from service.wire.errors import RecordedError, UnavailableError
from service.wire.events import ErrorEvent, Event, ResultEvent, StepEvent
from service.wire.job import JobStatus
from service.wire.messages import GenerateCommand, WireProblem

UNFINISHED = frozenset({JobStatus.QUEUED, JobStatus.RUNNING})
_CANCELLED_STATUS = 499
"""Status under which a job without an outcome is counted, as for a disconnected client."""


class JobRequest(BaseModel):
    """The request of a job: all that another replica needs to generate the same pictures."""

    model_config = ConfigDict(frozen=True, ser_json_bytes="base64", val_json_bytes="base64")

    format: Literal[1] = 1
    command: GenerateCommand
    """Its times are relative: 0, and the time limit. ``time.monotonic`` means nothing in another process."""
    created_at: datetime
    replies_with_json: bool
    """True if the client asked for JSON instead of files."""
    webhook_url: str | None = None
    root_path: str = ""
    """The URL prefix of the request that created the job."""
    model: Mapping[str, Any] = {}
    """Identity of the model that takes it: another model would generate other pictures."""

    @classmethod
    def of(cls, command: GenerateCommand, **fields: Any) -> Self:
        """Return the request of a command that has just been admitted."""
        relative = replace(command, submitted_at=0.0, deadline=command.deadline - command.submitted_at, trace=None)
        return cls(command=relative, created_at=datetime.now(UTC), **fields)

    def without_picture(self) -> Self:
        """Return the request without the picture that it changes, which no report needs."""
        return self.model_copy(update={"command": replace(self.command, picture=None)})

    def begin(self) -> GenerateCommand:
        """Return the command with times from now."""
        now = time.monotonic()
        return replace(self.command, submitted_at=now, deadline=now + self.command.deadline)


class JobFailure(BaseModel):
    """The error of a failed job."""

    code: str
    http_status: int
    problems: tuple[WireProblem, ...]

    @classmethod
    def of(cls, error: LithographError) -> Self:
        """Return the record of an error."""
        return cls(code=error.code, http_status=status_of(error), problems=error.problems)

    def as_error(self) -> RecordedError:
        """Return an error with the same code, problems and status."""
        error = RecordedError.of(self.problems)
        error.code, error.http_status = self.code, self.http_status
        return error


class JobEnd(BaseModel):
    """The end of a job, without its pictures."""

    model_config = ConfigDict(frozen=True)

    status: JobStatus
    started_at: datetime | None
    finished_at: datetime
    steps: int | None
    steps_made: int
    failure: JobFailure | None = None
    result: str | None = None
    """Name of the pictures of a job in storage. Each start, and each attempt to store them, has its own."""


@dataclass(kw_only=True)
class ImageJob:
    """One request, and its state."""

    request: JobRequest
    command: GenerateCommand
    status: JobStatus = JobStatus.QUEUED
    started_at: datetime | None = None
    finished_at: datetime | None = None
    steps: int | None = None
    """Steps of an image, once the first is made: its adapters may have a default."""
    steps_made: int = 0
    starts: int = 1
    """The number of times that an engine got it."""
    outcome: ResultEvent | ErrorEvent | None = None
    """Without the pictures where ``result_name`` names them in storage."""
    result_name: str | None = None
    is_lost: bool = False
    """True once another replica has the job, or it was removed: nothing more is to be done here."""
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    fetched: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    @property
    def id(self) -> str:
        """Return its id."""
        return self.request.command.id

    @property
    def url(self) -> str:
        """Return its URL path on this server."""
        return f"{self.request.root_path}/v1/jobs/{self.id}"

    @property
    def size_bytes(self) -> int:
        """Return the bytes of its pictures."""
        return sum(len(image.content) for image in self.outcome.images) if isinstance(self.outcome, ResultEvent) else 0

    @property
    def http_status(self) -> int:
        """Return the status under which the same request without a job would be counted."""
        match self.outcome:
            case ErrorEvent():
                return status_of(self.outcome.error)
            case _:
                return 200 if self.status is JobStatus.SUCCEEDED else _CANCELLED_STATUS

    @property
    def end(self) -> JobEnd:
        """Return the end of a finished job."""
        assert self.finished_at is not None
        failure = JobFailure.of(self.outcome.error) if isinstance(self.outcome, ErrorEvent) else None
        return JobEnd(
            status=self.status, started_at=self.started_at, finished_at=self.finished_at, steps=self.steps,
            steps_made=self.steps_made, failure=failure, result=self.result_name,
        )  # fmt: skip

    def record(self, event: Event) -> None:
        """Note an event of the request."""
        match event:
            case StepEvent():
                self.steps = event.steps
                self.status = JobStatus.RUNNING
                self.started_at = self.started_at or datetime.now(UTC)
                self.steps_made += 1
            case ResultEvent() | ErrorEvent():
                self.outcome = event

    def finish(self) -> None:
        """Set the final status from the outcome; forget the picture that the request changes."""
        self.request, self.command = self.request.without_picture(), replace(self.command, picture=None)
        self.finished_at = datetime.now(UTC)
        match self.outcome:
            case ResultEvent():
                self.status = JobStatus.SUCCEEDED
            case ErrorEvent():
                self.status = JobStatus.FAILED
            case None:
                self.status = JobStatus.CANCELLED

    def begin_again(self) -> None:
        """Forget a start that has come to nothing."""
        self.command = self.request.begin()
        self.status, self.outcome, self.steps_made = JobStatus.QUEUED, None, 0
        self.starts += 1

    def adopt(self, end: JobEnd) -> None:
        """Take an end that another replica has recorded."""
        self.status, self.started_at, self.finished_at = end.status, end.started_at, end.finished_at
        self.steps, self.steps_made, self.result_name = end.steps, end.steps_made, end.result
        if end.failure is not None:
            self.outcome = ErrorEvent(end.failure.as_error())
        elif end.status is JobStatus.CANCELLED:
            self.outcome = None


def started_too_often(job: ImageJob) -> JobEnd:
    """Return the end of a job during which the engine process ended each time."""
    error = UnavailableError(
        "job_started_too_often",
        "{starts} servers or engines have ended while they worked on the job",
        remedy="look for the end of an engine process in the servers' logs, then send the request again",
        starts=job.starts - 1,
    )
    job.record(ErrorEvent(error))
    job.finish()
    return job.end
