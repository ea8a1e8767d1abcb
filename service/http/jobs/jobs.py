"""Asynchronous jobs. Unfinished ones count among the requests under way of the server that generates them.

The same steps apply to both stores: generate, keep the end, send the webhook, close.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from datetime import timedelta

from starlette.requests import ClientDisconnect

from longcat.errors import LithographError, UnknownJobError
from longcat.logs import log_event
from service.access.caller import Caller, Role
from service.http.admission import Admission
from service.http.exchange.mailboxes import Mailbox
from service.http.jobs.job import UNFINISHED, ImageJob, JobRequest
from service.http.jobs.settings import JobConfig
from service.http.jobs.store import JobsInMemory, JobStore
from service.http.jobs.webhooks import Webhooks
from service.observability import metrics
from service.wire.errors import ErrorDetail, wrapped
from service.wire.events import ErrorEvent, ResultEvent
from service.wire.job import JobReport, JobStatus
from service.wire.messages import GenerateCommand
from service.wire.schema import GenerateRequest
from service.wire.state import ServicePhase
from service.wire.webhook_host import WebhookHost, may_call

log = logging.getLogger("lithograph")

_LINGER_SECONDS = 5.0
"""Time that a shutdown waits for the client to fetch a result that is in memory alone and has just become ready."""
_READY_SECONDS = 0.5
"""Interval of looks at the engine by a job that is to be started again."""


class ImageJobs:
    """The jobs that this server takes and knows."""

    def __init__(self, admission: Admission, config: JobConfig, store: JobStore) -> None:
        self._admission = admission
        self._config = config
        self._store = store
        self._tasks: set[asyncio.Task[None]] = set()
        self._webhooks = Webhooks(config.webhook_secret) if config.webhook_secret else None

    @property
    def are_lasting(self) -> bool:
        """True if jobs outlive this server."""
        return not isinstance(self._store, JobsInMemory)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Do the store's own work while this context is entered."""
        work = asyncio.create_task(self._store.run(self._take, has_room=lambda: self._admission.has_spare_room))
        try:
            yield
        finally:
            work.cancel()
            await asyncio.wait([work])

    async def start(self, command: GenerateCommand, body: GenerateRequest, *, root_path: str) -> ImageJob:
        """Send a command, and return its new job once it is kept. Raises ``StorageError``."""
        request = JobRequest.of(
            command,
            replies_with_json=body.response_format == "json",
            webhook_url=body.webhook_url,
            root_path=root_path,
            model=self._admission.model_identity,
        )
        async with AsyncExitStack() as stack:
            mailbox = await stack.enter_async_context(self._admission.exchange.send(command))
            job = ImageJob(request=request, command=command)
            await self._store.add(job)
            self._begin(job, mailbox, stack.pop_all())
        return job

    async def cancel(self, job: ImageJob) -> ImageJob:
        """Cancel an unfinished job, which stops its denoising. Remove a finished one with its pictures.

        Return the job afterwards. Raises ``UnknownJobError`` if it was removed meanwhile.
        """
        if job.status in UNFINISHED:
            await self._store.cancel(job)
            return await self._store.get(job.id) or job
        if not await self._store.remove(job):
            raise _unknown(job.id)
        return job

    async def get(self, job_id: str, caller: Caller) -> ImageJob:
        """Return a job of a caller; an administrator may see all. Raises ``UnknownJobError`` or ``StorageError``."""
        job = await self._store.get(job_id)
        if job is None or not (caller.has(Role.ADMIN) or job.command.key == caller.name):
            raise _unknown(job_id)
        return job

    async def result(self, job: ImageJob) -> ResultEvent:
        """Return the pictures of a job that has succeeded. Raises ``UnknownJobError`` or ``StorageError``."""
        if (result := await self._store.result(job)) is None:
            raise _unknown(job.id)
        job.fetched.set()
        return result

    def report(self, job: ImageJob, *, result: ResultEvent | None = None) -> JobReport:
        """Return a job's state, with the pictures that are given."""
        request, outcome = job.command.request, job.outcome
        request_id = job.command.request_id
        error = ErrorDetail.of(outcome.error, request_id=request_id) if isinstance(outcome, ErrorEvent) else None
        return JobReport(
            id=job.id,
            status=job.status,
            created_at=job.request.created_at,
            started_at=job.started_at,
            finished_at=job.finished_at,
            expires_at=job.finished_at and job.finished_at + timedelta(seconds=self._config.kept_seconds),
            steps_made=job.steps_made,
            steps=(job.steps or request.denoising_steps) * request.num_images,
            result_url=f"{job.url}/result" if job.status is JobStatus.SUCCEEDED else None,
            result=result,
            error=error,
        )

    def _take(self, job: ImageJob) -> None:
        """Work on a job that another process has begun."""
        metrics.JOBS_TAKEN.inc()
        log_event(log, "job_taken", request_id=job.command.request_id, key=job.command.key, starts=job.starts)
        self._begin(job, None, AsyncExitStack())

    def _begin(self, job: ImageJob, mailbox: Mailbox | None, stack: AsyncExitStack) -> None:
        job.task = asyncio.create_task(self._run(job, mailbox, stack))
        self._tasks.add(job.task)  # the event loop itself would let go of it
        job.task.add_done_callback(self._tasks.discard)
        metrics.JOBS_IN_PROGRESS.inc()
        job.task.add_done_callback(lambda _: metrics.JOBS_IN_PROGRESS.dec())

    async def _run(self, job: ImageJob, mailbox: Mailbox | None, stack: AsyncExitStack) -> None:
        """Do all work on a job; ``mailbox``: of its command, if that is sent, which exiting ``stack`` cancels."""
        with ExitStack() as shutdown_delay:
            if job.status in UNFINISHED:
                if not await self._generate(job, mailbox, stack, shutdown_delay):
                    return
                job.finish()
                await self._store.end(job)
                job.over.set()
                if not job.is_lost:  # while its end was stored; the replica that took it counts it
                    metrics.JOBS.labels(str(job.http_status)).inc()
            is_done = job.is_lost or await self._announce(job, self._store.webhook_pauses_seconds[:1])
            if job.status is JobStatus.SUCCEEDED and not self.are_lasting:
                with suppress(TimeoutError):
                    await asyncio.wait_for(job.fetched.wait(), _LINGER_SECONDS)
        pauses = self._store.webhook_pauses_seconds
        for i, seconds in enumerate(pauses, 1):
            if is_done or job.is_lost:
                break
            await asyncio.sleep(seconds)
            is_done = await self._announce(job, pauses[i : i + 1])
        await self._store.close(job)

    async def _generate(
        self, job: ImageJob, mailbox: Mailbox | None, stack: AsyncExitStack, shutdown_delay: ExitStack
    ) -> bool:
        """Generate until there is an outcome, or the job is cancelled; return False if that is left to another replica."""
        while True:
            async with stack:
                if mailbox is None:
                    mailbox = await stack.enter_async_context(self._admission.exchange.send(job.command))
                await self._receive(job, mailbox)
                shutdown_delay.enter_context(self._admission.exchange.delay_shutdown())
            if job.is_lost or not self._store.repeats(job):
                return not job.is_lost
            if not await self._is_ready(job):
                return False
            job.begin_again()
            mailbox, stack = None, AsyncExitStack()

    async def _receive(self, job: ImageJob, mailbox: Mailbox) -> None:
        """Record the events of a job."""
        try:
            while not mailbox.is_over:
                job.record(await self._admission.next(job.command, mailbox, _wait(job.cancelled)))
        except ClientDisconnect:  # ``cancelled`` has been set
            pass
        except LithographError as error:
            job.record(ErrorEvent(error))
        except Exception as error:  # no caller awaits this task: an unexpected error must become its outcome
            log.exception("request %s failed", job.command.request_id)
            job.record(ErrorEvent(wrapped(error)))

    async def _is_ready(self, job: ImageJob) -> bool:
        """Wait until an engine can start a job again; return False if this server will have none."""
        while not self._admission.state.is_shutting_down and not job.is_lost:
            await asyncio.sleep(_READY_SECONDS)
            if self._admission.state.phase is ServicePhase.READY and not self._admission.exchange.is_full:
                return True
        return False

    async def _announce(self, job: ImageJob, next_seconds: tuple[float, ...]) -> bool:
        """Send a job's webhook, if it has one; return False if it is to be sent again."""
        if (url := job.request.webhook_url) is None:
            return True
        if self._webhooks is None or not may_call(url, map(WebhookHost.parse, self._config.webhook_hosts)):
            reason = "this server does not call that address"  # its options have changed since the job was taken
            log_event(log, "webhook_given_up", logging.WARNING, request_id=job.command.request_id, reason=reason)
            return True
        return await self._webhooks.send(
            url, self.report(job), request_id=job.command.request_id, next_seconds=next(iter(next_seconds), None)
        )


def _unknown(job_id: str) -> UnknownJobError:
    return UnknownJobError(
        "unknown_image_job",
        "no such job: it never existed, has expired, or was evicted",
        remedy="send the request again",
        field="job_id",
        value=job_id,
    )


async def _wait(event: asyncio.Event) -> None:
    await event.wait()
