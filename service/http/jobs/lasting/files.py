"""The objects of a job in shared storage, and the order in which they come and go.

::

    requests/ID   the request            created first, removed last; never changes
    open/ID       the lease              while there is work: exists until the job has ended and its webhook is delivered
    results/ID/…  the pictures           created before the end, which names them; never change
    ended/ID      the end                created once: the first of several replicas decides how the job ended

A reader that sees a request with neither a lease nor an end sees no job: it has not been accepted yet, or has been removed.
S3 stores promise that an object appears whole. Not all keep it where the writer is killed in the middle (SeaweedFS left an
empty object, in ``make chaos``), so that an object that cannot be decoded counts as absent here, and is written over.
"""

import logging
import uuid
from contextlib import suppress
from datetime import datetime
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from longcat.errors import StorageConflictError
from longcat.logs import log_event
from service.http.jobs.job import JobEnd, JobRequest
from service.http.jobs.lasting.calls import StorageCalls
from service.wire.events import ResultEvent
from service.wire.job import JobStatus

log = logging.getLogger("lithograph")

NOBODY = ""
"""Owner of a lease that cannot be decoded."""
LARGEST_REQUEST_BYTES = 64 * 2**20
_LARGEST_RECORD_BYTES = 2**20
_LARGEST_RESULT_BYTES = 2**30
_RESULT_SECONDS = 120.0
"""Time limit of storing or reading pictures."""

Model = TypeVar("Model", bound=BaseModel)


class JobLease(BaseModel):
    """The replica that works on a job, and its progress. Each renewal changes it, and with it the object's ETag."""

    model_config = ConfigDict(frozen=True)

    owner: str
    """A start of a server, which has a random name."""
    renewals: int = 0
    starts: int = 1
    """The number of times that an engine got the job."""
    status: JobStatus = JobStatus.QUEUED
    started_at: datetime | None = None
    steps: int | None = None
    steps_made: int = 0
    is_cancelled: bool = False
    """Another replica has ended the job."""


class JobFiles:
    """The objects of jobs."""

    def __init__(self, calls: StorageCalls) -> None:
        self.calls = calls

    async def create_request(self, request: JobRequest) -> None:
        """Store the request of a new job."""
        await self.calls.create(f"requests/{request.command.id}", lambda: request.model_dump_json().encode())

    async def request(self, job_id: str) -> JobRequest | None:
        """Return the request of a job."""
        found = await self._read(f"requests/{job_id}", JobRequest, LARGEST_REQUEST_BYTES)
        return None if found is None else found[0]

    async def create_lease(self, job_id: str, lease: JobLease) -> str:
        """Store the first lease of a job; return its ETag."""
        return await self.calls.create(f"open/{job_id}", lambda: lease.model_dump_json().encode())

    async def lease(self, job_id: str) -> tuple[JobLease, str] | None:
        """Return the lease of a job, and its ETag; one that cannot be decoded is nobody's."""
        found = await self._read(f"open/{job_id}", JobLease, _LARGEST_RECORD_BYTES)
        return None if found is None else (found[0] or JobLease(owner=NOBODY), found[1])

    async def replace_lease(self, job_id: str, lease: JobLease, etag: str) -> str:
        """Replace a lease that has not changed; return its ETag. Raises ``StorageConflictError``."""
        return await self.calls.replace(f"open/{job_id}", lease.model_dump_json().encode(), etag=etag)

    async def leases(self) -> dict[str, str]:
        """Return the ETags of all leases, by job."""
        return {entry.key.partition("/")[2]: entry.etag for entry in await self.calls.list("open/")}

    async def create_result(self, job_id: str, result: ResultEvent) -> str:
        """Store pictures under a new name; return the name."""
        name = uuid.uuid4().hex
        key = f"results/{job_id}/{name}"
        await self.calls.create(key, lambda: result.model_dump_json().encode(), seconds=_RESULT_SECONDS)
        return name

    async def result(self, job_id: str, name: str) -> ResultEvent | None:
        """Return the pictures of a job."""
        key = f"results/{job_id}/{name}"
        found = await self._read(key, ResultEvent, _LARGEST_RESULT_BYTES, seconds=_RESULT_SECONDS)
        return None if found is None else found[0]

    async def create_end(self, job_id: str, end: JobEnd) -> JobEnd:
        """Store the end of a job; return the one that stands, which may be an earlier one."""
        key, content = f"ended/{job_id}", end.model_dump_json().encode()
        try:
            await self.calls.create(key, lambda: content)
        except StorageConflictError:
            found = await self._read(key, JobEnd, _LARGEST_RECORD_BYTES)
            if found is not None and found[0] is not None:
                return found[0]
            if found is not None:
                await self.calls.replace(key, content, etag=found[1])
        return end

    async def end(self, job_id: str) -> JobEnd | None:
        """Return the end of a job."""
        found = await self._read(f"ended/{job_id}", JobEnd, _LARGEST_RECORD_BYTES)
        return None if found is None else found[0]

    async def remove_lease(self, job_id: str) -> None:
        """Remove the lease of an ended job, on which no work is left."""
        await self.calls.delete(f"open/{job_id}")

    async def remove(self, job_id: str) -> None:
        """Remove all of a job."""
        results = [entry.key for entry in await self.calls.list(f"results/{job_id}/")]
        await self.calls.delete(f"open/{job_id}", *results, f"ended/{job_id}", f"requests/{job_id}")

    async def ids(self) -> list[str]:
        """Return the ids of all jobs."""
        return [entry.key.partition("/")[2] for entry in await self.calls.list("requests/")]

    async def _read(
        self, key: str, model: type[Model], max_bytes: int, *, seconds: float = 15.0
    ) -> tuple[Model | None, str] | None:
        """Return an object and its ETag; None if it is missing, and None for its content if that cannot be decoded."""

        def decode(content: bytes) -> Model | None:
            with suppress(ValidationError):
                return model.model_validate_json(content)
            log_event(log, "job_object_damaged", logging.WARNING, key=key, bytes=len(content))
            return None

        return await self.calls.read(key, max_bytes=max_bytes, decode=decode, seconds=seconds)
