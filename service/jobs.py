"""Requests that are answered later: ``POST /generate`` with ``"async": true``, then ``GET`` and ``DELETE /v1/jobs/{id}``.

Jobs live in the memory of the HTTP process that took them, of which there is one: bounded in number, in bytes and in time,
and gone when the server ends. Those under way count among the requests under way.
"""

import asyncio
from contextlib import AsyncExitStack, ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from starlette.requests import ClientDisconnect

from service import metrics
from service.admission import CLIENT_GONE, Admission
from service.config import JobConfig
from service.exchange import Mailbox
from service.messages import Draw, Failed, RefusedError, Reply, Step
from service.picture import Rendered
from service.replies import RESPONSES, Responses, failure_of, pictures, pictures_in_json
from service.schema import ErrorBody, ErrorDetail, GenerateRequest, JobReport, JobStatus
from service.webhooks import Webhooks

_UNDER_WAY = frozenset({JobStatus.QUEUED, JobStatus.RUNNING})
_POLL_SECONDS = 1
_LINGER_SECONDS = 5.0
"""How long a server that is stopping waits for somebody to fetch what has just been drawn."""
_CANCELLED = Failed(status=410, code="cancelled", message="the job was cancelled: it has no pictures")


@dataclass(kw_only=True)
class Job:
    """One request and what has become of it."""

    draw: Draw
    wanted: GenerateRequest
    status: JobStatus = JobStatus.QUEUED
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    started_at: datetime | None = None
    finished_at: datetime | None = None
    steps_made: int = 0
    outcome: Rendered | Failed | None = None
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    fetched: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    @property
    def size_bytes(self) -> int:
        """Of its pictures."""
        return sum(map(len, self.outcome.files)) if isinstance(self.outcome, Rendered) else 0

    @property
    def http_status(self) -> int:
        """What a request that was waited for would have been counted under."""
        match self.outcome:
            case Rendered():
                return 200
            case Failed():
                return self.outcome.status
            case None:
                return CLIENT_GONE

    def record(self, reply: Reply) -> None:
        """Note a reply of the engine."""
        match reply:
            case Step():
                self.status = JobStatus.RUNNING
                self.started_at = self.started_at or datetime.now(UTC)
                self.steps_made += 1
            case Rendered() | Failed():
                self.outcome = reply

    def settle(self) -> None:
        """It is over."""
        self.finished_at = datetime.now(UTC)
        self.over.set()
        match self.outcome:
            case Rendered():
                self.status = JobStatus.SUCCEEDED
            case Failed():
                self.status = JobStatus.FAILED
            case None:
                self.status = JobStatus.CANCELLED


class Jobs:
    """The jobs of this process, and their endpoints."""

    def __init__(self, admission: Admission, config: JobConfig) -> None:
        self._admission = admission
        self._config = config
        self._jobs: dict[str, Job] = {}
        """Those that are over are in the order in which they ended."""
        self._webhooks = Webhooks(config.webhook_secret) if config.webhook_secret else None

    def add_to(self, app: FastAPI) -> None:
        """Register the endpoints; ``POST /generate`` makes jobs."""
        unknown: Responses = {404: {"description": "No such job, or it is forgotten.", "model": ErrorBody}}
        for method, path, endpoint, summary, options in (
            ("GET", "/v1/jobs/{job_id}", self._show, "How far a job is", {"response_model": JobReport}),
            ("DELETE", "/v1/jobs/{job_id}", self._cancel, "Cancel a job; forget one that is over",
             {"response_model": JobReport}),
            ("GET", "/v1/jobs/{job_id}/result", self._result, "What POST /generate would have answered",
             {"response_class": Response}),
        ):  # fmt: skip
            responses = unknown if "response_model" in options else {200: RESPONSES[200], **unknown, **_NO_RESULT}
            app.add_api_route(
                path, endpoint, methods=[method], name=endpoint.__name__.strip("_"), summary=summary, tags=["jobs"],
                responses=responses, **options,
            )  # fmt: skip

    async def start(self, draw: Draw, wanted: GenerateRequest) -> Response:
        """Order it; the reply that says where to ask."""
        stack = AsyncExitStack()
        mailbox = await stack.enter_async_context(self._admission.send(draw))
        job = Job(draw=draw, wanted=wanted)
        self._jobs[draw.id] = job
        job.task = asyncio.create_task(self._run(job, mailbox, stack))
        headers = {"Location": f"/v1/jobs/{draw.id}", "Retry-After": str(self._admission.exchange.wait_seconds)}
        return _reply(self._report(job), status=202, headers=headers)

    async def _run(self, job: Job, mailbox: Mailbox, stack: AsyncExitStack) -> None:
        with ExitStack() as shutdown_delay:
            async with stack:
                try:
                    while not mailbox.is_over:
                        job.record(await self._admission.next(job.draw, mailbox, _set(job.cancelled)))
                except ClientDisconnect:  # somebody cancelled it
                    pass
                except Exception as error:
                    job.record(failure_of(error, request_id=job.draw.id))
                shutdown_delay.enter_context(self._admission.exchange.delay_shutdown())
            self._settle(job)
            if job.wanted.webhook_url is not None:
                assert self._webhooks is not None  # the limits refuse it otherwise
                await self._webhooks.tell(job.wanted.webhook_url, self._report(job))
            if job.status is JobStatus.SUCCEEDED:
                with suppress(TimeoutError):
                    await asyncio.wait_for(job.fetched.wait(), _LINGER_SECONDS)

    def _settle(self, job: Job) -> None:
        """It is over: keep it for a while, and make room for it."""
        job.settle()
        metrics.JOBS.labels(str(job.http_status)).inc()
        self._jobs[job.draw.id] = self._jobs.pop(job.draw.id)
        asyncio.get_running_loop().call_later(self._config.ttl_seconds, self._jobs.pop, job.draw.id, None)
        over = [j for j in self._jobs.values() if j.finished_at is not None]
        number, size = len(self._jobs), sum(j.size_bytes for j in over)
        for old in over[:-1]:
            if number <= self._config.most and size <= self._config.mib * 2**20:
                break
            number, size = number - 1, size - old.size_bytes
            del self._jobs[old.draw.id]

    def _report(self, job: Job, *, with_result: bool = False) -> JobReport:
        request, outcome = job.draw.request, job.outcome
        is_drawn = isinstance(outcome, Rendered)
        report = JobReport(
            id=job.draw.id,
            status=job.status,
            created_at=job.created_at,
            started_at=job.started_at,
            finished_at=job.finished_at,
            expires_at=job.finished_at and job.finished_at + timedelta(seconds=self._config.ttl_seconds),
            steps_made=job.steps_made,
            steps=request.steps * request.num_images,
            result_url=f"/v1/jobs/{job.draw.id}/result" if is_drawn else None,
            error=ErrorDetail(code=outcome.code, message=outcome.message) if isinstance(outcome, Failed) else None,
        )
        if with_result and isinstance(outcome, Rendered) and job.wanted.response_format == "json":
            report.result = pictures_in_json(job.draw.id, self._admission.flavour.hash, request, outcome)
        return report

    async def _show(self, job_id: str) -> Response:
        """Its state; with the pictures in base64 if it was asked with `response_format` `json`."""
        job = self._find(job_id)
        if isinstance(job.outcome, Rendered) and job.wanted.response_format == "json":
            job.fetched.set()
        headers = {"Retry-After": str(_POLL_SECONDS)} if job.status in _UNDER_WAY else {}
        return _reply(self._report(job, with_result=True), headers=headers)

    async def _result(self, job_id: str) -> Response:
        """The pictures themselves, or the error that it came to."""
        job = self._find(job_id)
        if isinstance(job.outcome, Failed):
            raise RefusedError(job.outcome)
        if job.status is JobStatus.CANCELLED:
            raise RefusedError(_CANCELLED)
        if job.outcome is None:
            message, seconds = f"job {job_id} is {job.status}: ask again later", _POLL_SECONDS
            raise RefusedError(Failed(status=409, code="not_finished", message=message, retry_after_seconds=seconds))
        job.fetched.set()
        as_json = job.wanted.response_format == "json"
        return pictures(job_id, self._admission.flavour.hash, job.draw.request, job.outcome, as_json=as_json)

    async def _cancel(self, job_id: str) -> Response:
        """Under way, it costs no more steps; over, it is forgotten with its pictures."""
        job = self._find(job_id)
        if job.status in _UNDER_WAY:
            job.cancelled.set()
            await job.over.wait()
        else:
            del self._jobs[job_id]
            job.fetched.set()
        return _reply(self._report(job))

    def _find(self, job_id: str) -> Job:
        if job_id in self._jobs:
            return self._jobs[job_id]
        message = f"there is no job {job_id!r}: it never existed, has expired, or was forgotten to make room for others"
        raise RefusedError(Failed(status=404, code="job_not_found", message=message))


_NO_RESULT: Responses = {
    409: {"description": "It is not over yet.", "model": ErrorBody},
    410: {"description": "It was cancelled.", "model": ErrorBody},
}


async def _set(event: asyncio.Event) -> None:
    await event.wait()


def _reply(report: JobReport, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse(report.model_dump(mode="json"), status_code=status, headers=headers)
