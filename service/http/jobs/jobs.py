"""Asynchronous jobs, in the memory of the one HTTP process.

Jobs are bounded in number, in bytes and in time, and are gone when the server ends. Unfinished ones count among the requests
under way.
"""

import asyncio
import logging
from contextlib import AsyncExitStack, ExitStack, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from starlette.requests import ClientDisconnect

from longcat.errors import LithographError, UnknownJobError
from service.access.caller import Caller, Role
from service.config import JobConfig
from service.http.admission import Admission
from service.http.error_responses import status_of
from service.http.exchange.mailboxes import Mailbox
from service.http.jobs.webhooks import Webhooks
from service.observability import metrics
from service.wire.errors import wrapped
from service.wire.events import ErrorEvent, Event, ResultEvent, StepEvent
from service.wire.job import JobReport, JobStatus
from service.wire.messages import GenerateCommand
from service.wire.schema import ErrorDetail, GenerateRequest

log = logging.getLogger("lithograph")

UNFINISHED = frozenset({JobStatus.QUEUED, JobStatus.RUNNING})
_LINGER_SECONDS = 5.0
"""Time that a shutdown waits for the client to fetch a result that has just become ready."""
_CANCELLED_STATUS = 499
"""Status under which a job without an outcome is counted, as for a disconnected client."""


@dataclass(kw_only=True)
class ImageJob:
    """One request, and its state."""

    command: GenerateCommand
    body: GenerateRequest
    root_path: str
    """The URL prefix of the request that created the job."""
    status: JobStatus = JobStatus.QUEUED
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    started_at: datetime | None = None
    finished_at: datetime | None = None
    steps: int | None = None
    """Steps of an image, once the first is made: its adapters may have a default."""
    steps_made: int = 0
    outcome: ResultEvent | ErrorEvent | None = None
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    fetched: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    @property
    def replies_with_json(self) -> bool:
        """True if the request asks for JSON instead of files."""
        return self.body.response_format == "json"

    @property
    def url(self) -> str:
        """Return its URL path on this server."""
        return f"{self.root_path}/v1/jobs/{self.command.id}"

    @property
    def size_bytes(self) -> int:
        """Return the bytes of its pictures."""
        return sum(len(image.content) for image in self.outcome.images) if isinstance(self.outcome, ResultEvent) else 0

    @property
    def http_status(self) -> int:
        """Return the status under which the same request without a job would be counted."""
        match self.outcome:
            case ResultEvent():
                return 200
            case ErrorEvent():
                return status_of(self.outcome.error)
            case None:
                return _CANCELLED_STATUS

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
        """Set the final status from the outcome."""
        self.command = replace(self.command, picture=None)
        self.finished_at = datetime.now(UTC)
        self.over.set()
        match self.outcome:
            case ResultEvent():
                self.status = JobStatus.SUCCEEDED
            case ErrorEvent():
                self.status = JobStatus.FAILED
            case None:
                self.status = JobStatus.CANCELLED


class ImageJobs:
    """The jobs of this process."""

    def __init__(self, admission: Admission, config: JobConfig) -> None:
        self._admission = admission
        self._config = config
        self._jobs: dict[str, ImageJob] = {}
        """Finished jobs are in the order in which they finished."""
        self._webhooks = Webhooks(config.webhook_secret) if config.webhook_secret else None

    async def start(self, command: GenerateCommand, body: GenerateRequest, *, root_path: str) -> ImageJob:
        """Send a command, and return its new job."""
        stack = AsyncExitStack()
        mailbox = await stack.enter_async_context(self._admission.exchange.send(command))
        job = ImageJob(command=command, body=body, root_path=root_path)
        self._jobs[command.id] = job
        job.task = asyncio.create_task(self._run(job, mailbox, stack))
        return job

    async def cancel(self, job: ImageJob) -> None:
        """Cancel an unfinished job, which stops its denoising. Remove a finished one with its pictures."""
        if job.status in UNFINISHED:
            job.cancelled.set()
            await job.over.wait()
        else:
            del self._jobs[job.command.id]
            job.fetched.set()

    def get(self, job_id: str, caller: Caller) -> ImageJob:
        """Return a job of a caller; an administrator may see all. Raises ``UnknownJobError``."""
        job = self._jobs.get(job_id)
        if job is None or not (caller.has(Role.ADMIN) or job.command.key == caller.name):
            raise UnknownJobError(
                "unknown_image_job",
                "no such job: it never existed, has expired, or was evicted",
                remedy="send the request again",
                field="job_id",
                value=job_id,
            )
        return job

    def report(self, job: ImageJob, *, with_result: bool = False) -> JobReport:
        """Return a job's state; ``with_result``: with the pictures, if the request asks for JSON."""
        request, outcome = job.command.request, job.outcome
        is_done = isinstance(outcome, ResultEvent)
        request_id = job.command.request_id
        error = ErrorDetail.of(outcome.error, request_id=request_id) if isinstance(outcome, ErrorEvent) else None
        return JobReport(
            id=job.command.id,
            status=job.status,
            created_at=job.created_at,
            started_at=job.started_at,
            finished_at=job.finished_at,
            expires_at=job.finished_at and job.finished_at + timedelta(seconds=self._config.ttl_seconds),
            steps_made=job.steps_made,
            steps=(job.steps or request.denoising_steps) * request.num_images,
            result_url=f"{job.url}/result" if is_done else None,
            result=outcome if isinstance(outcome, ResultEvent) and with_result and job.replies_with_json else None,
            error=error,
        )

    async def _run(self, job: ImageJob, mailbox: Mailbox, stack: AsyncExitStack) -> None:
        with ExitStack() as shutdown_delay:
            async with stack:
                try:
                    while not mailbox.is_over:
                        job.record(await self._admission.next(job.command, mailbox, _wait(job.cancelled)))
                except ClientDisconnect:  # DELETE has set ``cancelled``
                    pass
                except LithographError as error:
                    job.record(ErrorEvent(error))
                except Exception as error:  # no caller awaits this task: an unexpected error must become its outcome
                    log.exception("request %s failed", job.command.request_id)
                    job.record(ErrorEvent(wrapped(error)))
                shutdown_delay.enter_context(self._admission.exchange.delay_shutdown())
            self._finish(job)
            if job.body.webhook_url is not None:
                assert self._webhooks is not None  # the limits allow no webhook without a secret
                await self._webhooks.send(job.body.webhook_url, self.report(job), request_id=job.command.request_id)
            if job.status is JobStatus.SUCCEEDED:
                with suppress(TimeoutError):
                    await asyncio.wait_for(job.fetched.wait(), _LINGER_SECONDS)

    def _finish(self, job: ImageJob) -> None:
        """Keep a finished job for its time; evict the oldest finished ones beyond the limits."""
        job.finish()
        metrics.JOBS.labels(str(job.http_status)).inc()
        self._jobs[job.command.id] = self._jobs.pop(job.command.id)
        asyncio.get_running_loop().call_later(self._config.ttl_seconds, self._jobs.pop, job.command.id, None)
        finished = [j for j in self._jobs.values() if j.finished_at is not None]
        number, size = len(self._jobs), sum(j.size_bytes for j in finished)
        for oldest in finished[:-1]:
            if number <= self._config.most and size <= self._config.mib * 2**20:
                break
            number, size = number - 1, size - oldest.size_bytes
            del self._jobs[oldest.command.id]


async def _wait(event: asyncio.Event) -> None:
    await event.wait()
