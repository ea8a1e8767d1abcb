"""The store of jobs in shared storage.

A replica keeps a lease on each job that it works on, and renews it. Another takes the job once it has itself seen the lease
unchanged for ``lease_seconds``: by its own monotonic clock, so that clocks that differ between machines do not matter. Both
write with compare-and-swap, so that one of them has it.

A replica that was only stopped for a while may still generate a job that another has taken. That costs steps, not
correctness: the pictures are the same, and the end that was stored first stands (``service.http.jobs.lasting.files``).
"""

import asyncio
import logging
import random
import re
import uuid
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar

from longcat.errors import StorageConflictError, StorageError, StorageMissingError
from longcat.logs import log_event
from service.http.jobs.job import UNFINISHED, ImageJob, JobRequest, started_too_often
from service.http.jobs.lasting.files import NOBODY, JobFiles, JobLease
from service.http.jobs.lasting.observation import Observation
from service.http.jobs.lasting.retention import Retention
from service.http.jobs.settings import JobConfig
from service.http.jobs.store import JobStore
from service.observability import metrics
from service.wire.errors import UnavailableError
from service.wire.events import ErrorEvent, ResultEvent
from service.wire.job import JobStatus

log = logging.getLogger("lithograph")

_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MOST_STARTS = 10
"""Starts of one job, after which it fails: it may be what ends the engines."""
_RENEWALS = 3
"""Renewals in the time of a lease: two may be late or lost."""
_LOOKS = 10
"""Looks for leases that have ended, in the time of a lease."""
_RETRY_SECONDS = 2.0
"""Pause before an end is stored again, while the storage cannot be reached."""
_CANCEL_ATTEMPTS = 5
_RANDOM = random.SystemRandom()
_MOST_REQUESTS = 1000
"""Requests kept in memory: a client asks for its job every second."""


@dataclass
class _Held:
    """A job that this replica works on, and the ETag of its lease."""

    job: ImageJob
    etag: str
    renewals: int = 0
    has_end: bool = False
    """True once its end is stored."""


class LastingJobs(JobStore):
    """Jobs in shared storage."""

    webhook_pauses_seconds: ClassVar[tuple[float, ...]] = (30.0, 120.0, 600.0, 3600.0, 6 * 3600.0, 12 * 3600.0)

    def __init__(self, files: JobFiles, config: JobConfig, model: Callable[[], dict[str, object]]) -> None:
        """``model``: the identity of the loaded model; jobs of another are left to other replicas."""
        self._files = files
        self._config = config
        self._model = model
        self._owner = uuid.uuid4().hex
        self._held: dict[str, _Held] = {}
        self._requests: dict[str, JobRequest] = {}
        self._observation = Observation(config.lease_seconds)
        self._retention = Retention(files, config.kept_seconds)

    async def add(self, job: ImageJob) -> None:
        """Store the request, then the lease. Once both are there, other replicas can take it."""
        await self._files.create_request(job.request)
        etag = await self._files.create_lease(job.id, self._lease(job, 0))
        self._held[job.id] = _Held(job, etag)

    async def get(self, job_id: str) -> ImageJob | None:
        """Return a job: its end if there is one, else its progress here, else that which its replica last stored."""
        if not _ID.fullmatch(job_id):
            return None
        held = self._held.get(job_id)
        try:
            if (request := await self._request(job_id)) is None:
                return None
            end = await self._files.end(job_id)
            if end is None and held is not None:
                return self._shown(held)
            job = ImageJob(request=request, command=request.begin())
            if end is None:
                lease = await self._files.lease(job_id)
                end = await self._files.end(job_id) if lease is None else None  # it may have ended between the two
                if lease is not None:
                    _show_progress(job, lease[0])
                elif end is None:
                    return None
        except StorageError:
            if held is None:
                raise
            return self._shown(held)  # a storage that is down keeps no client from a job that runs here
        if end is not None:
            job.adopt(end)
        return job

    async def _request(self, job_id: str) -> JobRequest | None:
        """Return a job's request without the picture that it changes, from memory if it was asked for lately."""
        if (known := self._requests.get(job_id)) is None and (read := await self._files.request(job_id)) is not None:
            known = self._requests[job_id] = read.without_picture()
            if len(self._requests) > _MOST_REQUESTS:
                del self._requests[next(iter(self._requests))]
        return known

    async def result(self, job: ImageJob) -> ResultEvent | None:
        """Return its pictures, from storage."""
        return None if job.result_name is None else await self._files.result(job.id, job.result_name)

    def repeats(self, job: ImageJob) -> bool:
        """Return True if the engine ended during the job."""
        outcome = job.outcome
        failed = isinstance(outcome, ErrorEvent) and isinstance(outcome.error, UnavailableError)
        return failed and job.starts < _MOST_STARTS

    async def end(self, job: ImageJob) -> None:
        """Store pictures and end, again and again while the storage cannot be reached."""
        while not job.is_lost:
            try:
                if isinstance(job.outcome, ResultEvent):
                    job.result_name = await self._files.create_result(job.id, job.outcome)
                job.adopt(await self._files.create_end(job.id, job.end))
                if (held := self._held.get(job.id)) is not None:
                    held.has_end = True
                await self._renew(job.id)
            except StorageError:
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                job.outcome = None if isinstance(job.outcome, ResultEvent) else job.outcome  # it is in storage
                return

    async def close(self, job: ImageJob) -> None:
        """Remove the lease. One that cannot be removed makes another replica send the webhook again."""
        if self._held.pop(job.id, None) is not None and not job.is_lost:
            with suppress(StorageError):
                await self._files.remove_lease(job.id)

    async def cancel(self, job: ImageJob) -> None:
        """Store the end, which stands from then on, and have the replica that generates the job stop."""
        cancelled = ImageJob(
            request=job.request,
            command=job.command,
            started_at=job.started_at,
            steps=job.steps,
            steps_made=job.steps_made,
        )
        cancelled.finish()
        await self._files.create_end(job.id, cancelled.end)
        if (held := self._held.get(job.id)) is not None:
            held.job.cancelled.set()
            return
        for _ in range(_CANCEL_ATTEMPTS):  # against a renewal at the same time
            if (found := await self._files.lease(job.id)) is None:
                return
            try:
                flagged = found[0].model_copy(update={"is_cancelled": True})
                await self._files.replace_lease(job.id, flagged, found[1])
            except (StorageConflictError, StorageMissingError):
                continue
            return

    async def remove(self, job: ImageJob) -> bool:
        """Remove all that is stored of it; a webhook that has not been delivered is not sent any more."""
        if (held := self._held.pop(job.id, None)) is not None:
            held.job.is_lost = True
        self._requests.pop(job.id, None)
        await self._files.remove(job.id)
        return True

    async def run(self, take: Callable[[ImageJob], None], *, has_room: Callable[[], bool]) -> None:
        """Renew leases, look for those that have ended, and remove what has expired."""
        seconds = self._config.lease_seconds
        async with asyncio.TaskGroup() as group:
            group.create_task(self._repeat(seconds / _RENEWALS, self._renew_all))
            group.create_task(self._repeat(seconds / _LOOKS, lambda: self._take_up(take, has_room)))
            group.create_task(self._repeat(self._retention.interval_seconds, lambda: self._retention.sweep(self._held)))

    async def _repeat(self, seconds: float, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while True:
            await asyncio.sleep(seconds * _RANDOM.uniform(0.8, 1.2))  # replicas do not all act at once
            try:
                await work()
            except StorageError:  # an outage, which ``StorageCalls`` has logged
                pass
            except Exception:  # any: the other jobs go on
                log.exception("the work on stored jobs failed")

    async def _renew_all(self) -> None:
        await asyncio.gather(*(self._try_to_renew(job_id) for job_id in list(self._held)))

    async def _try_to_renew(self, job_id: str) -> None:
        with suppress(StorageError):  # the next renewal comes before the lease ends
            await self._renew(job_id)

    async def _renew(self, job_id: str) -> None:
        """Renew a lease; find out why if it has changed."""
        if (held := self._held.get(job_id)) is None:
            return
        held.renewals += 1
        try:
            held.etag = await self._files.replace_lease(job_id, self._lease(held.job, held.renewals), held.etag)
        except (StorageConflictError, StorageMissingError):
            found = await self._files.lease(job_id)
            if found is None or found[0].owner not in (self._owner, NOBODY):
                self._lose(held)
                return
            held.etag = found[1]  # a write of our own that seemed to have failed, or another replica's flag
            if found[0].is_cancelled:
                held.job.cancelled.set()

    def _lose(self, held: _Held) -> None:
        job = held.job
        log_event(log, "job_lost", logging.WARNING, request_id=job.command.request_id, key=job.command.key)
        self._held.pop(job.id, None)
        job.is_lost = True
        job.cancelled.set()

    async def _take_up(self, take: Callable[[ImageJob], None], has_room: Callable[[], bool]) -> None:
        """Take the jobs whose leases have ended, as far as there is room."""
        leases = await self._files.leases()
        ended = self._observation.note(leases)
        for job_id in _RANDOM.sample(ended, len(ended)):
            if not has_room():
                break
            if job_id not in self._held and (job := await self._taken(job_id)) is not None:
                take(job)
        metrics.JOBS_OPEN.set(len(leases))
        metrics.JOBS_ABANDONED.set(sum(job_id not in self._held for job_id in ended))

    async def _taken(self, job_id: str) -> ImageJob | None:
        """Take a job; return None if another replica was faster, or the job was removed or is another model's."""
        if (found := await self._files.lease(job_id)) is None or found[1] != self._observation.etag(job_id):
            return None
        lease, etag = found
        request, end = await self._files.request(job_id), await self._files.end(job_id)
        if request is None:
            await self._files.remove_lease(job_id)
            return None
        if end is None and request.model != self._model():
            return None
        job = ImageJob(request=request, command=request.begin(), starts=lease.starts + (end is None))
        try:
            etag = await self._files.replace_lease(job_id, self._lease(job, 0), etag)
        except (StorageConflictError, StorageMissingError):
            return None
        if end is None and job.starts > _MOST_STARTS:
            end = await self._files.create_end(job_id, started_too_often(job))
        if end is not None:
            job.adopt(end)
        self._held[job_id] = _Held(job, etag)
        return job

    def _lease(self, job: ImageJob, renewals: int) -> JobLease:
        status = job.status if job.status in UNFINISHED else JobStatus.RUNNING
        return JobLease(
            owner=self._owner, renewals=renewals, starts=job.starts, status=status, started_at=job.started_at,
            steps=job.steps, steps_made=job.steps_made,
        )  # fmt: skip

    def _shown(self, held: _Held) -> ImageJob:
        """Return a job that is worked on here as clients see it: unfinished until its end is stored."""
        job = held.job
        if held.has_end:
            return job
        shown = ImageJob(request=job.request, command=job.command)
        _show_progress(shown, self._lease(job, 0))
        return shown


def _show_progress(job: ImageJob, lease: JobLease) -> None:
    job.status, job.started_at, job.steps, job.steps_made = (
        lease.status,
        lease.started_at,
        lease.steps,
        lease.steps_made,
    )
