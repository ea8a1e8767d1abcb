"""The stores of jobs: the memory of the HTTP process, or shared storage (``service.http.jobs.lasting``)."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from service.http.jobs.job import UNFINISHED, ImageJob
from service.http.jobs.settings import JobConfig
from service.wire.events import ResultEvent


class JobStore(ABC):
    """Jobs by id. Methods of a store in shared storage raise ``StorageError``."""

    webhook_pauses_seconds: ClassVar[tuple[float, ...]] = ()
    """Pauses before further rounds of attempts to deliver a webhook."""

    @abstractmethod
    async def add(self, job: ImageJob) -> None:
        """Keep a new job."""

    @abstractmethod
    async def get(self, job_id: str) -> ImageJob | None:
        """Return a job in its present state; None if there is none."""

    @abstractmethod
    async def result(self, job: ImageJob) -> ResultEvent | None:
        """Return the pictures of a job that has succeeded; None if they have been removed meanwhile."""

    @abstractmethod
    def repeats(self, job: ImageJob) -> bool:
        """Return True if a job has no valid outcome, and may have one after another start."""

    @abstractmethod
    async def end(self, job: ImageJob) -> None:
        """Keep a finished job's outcome. The first outcome stands: the job takes an earlier one for its own."""

    @abstractmethod
    async def close(self, job: ImageJob) -> None:
        """Forget the work on an ended job: nothing is left to do."""

    @abstractmethod
    async def cancel(self, job: ImageJob) -> None:
        """End an unfinished job, wherever it is generated."""

    @abstractmethod
    async def remove(self, job: ImageJob) -> bool:
        """Remove a finished job with its pictures; return False if it is gone already."""

    @abstractmethod
    async def run(self, take: Callable[[ImageJob], None], *, has_room: Callable[[], bool]) -> None:
        """Keep the store's own work going until cancelled; ``take`` gets jobs that no other process works on any more."""


class JobsInMemory(JobStore):
    """The jobs of this process, bounded in number, in bytes and in time, and gone when it ends."""

    def __init__(self, config: JobConfig) -> None:
        self._config = config
        self._jobs: dict[str, ImageJob] = {}
        """Finished jobs are in the order in which they finished."""

    async def add(self, job: ImageJob) -> None:
        """Keep a new job."""
        self._jobs[job.id] = job

    async def get(self, job_id: str) -> ImageJob | None:
        """Return a job."""
        return self._jobs.get(job_id)

    async def result(self, job: ImageJob) -> ResultEvent | None:
        """Return its pictures."""
        return job.outcome if isinstance(job.outcome, ResultEvent) else None

    def repeats(self, _: ImageJob) -> bool:
        """Return False: clients of this process see for themselves that its engine has ended."""
        return False

    async def end(self, job: ImageJob) -> None:
        """Keep a finished job for its time; evict the oldest finished ones beyond the limits."""
        self._jobs[job.id] = self._jobs.pop(job.id)
        asyncio.get_running_loop().call_later(self._config.kept_seconds, self._jobs.pop, job.id, None)
        finished = [j for j in self._jobs.values() if j.status not in UNFINISHED]
        number, size = len(self._jobs), sum(j.size_bytes for j in finished)
        for oldest in finished[:-1]:
            if number <= self._config.most and size <= self._config.mib * 2**20:
                break
            number, size = number - 1, size - oldest.size_bytes
            del self._jobs[oldest.id]

    async def close(self, job: ImageJob) -> None:
        """Do nothing."""

    async def cancel(self, job: ImageJob) -> None:
        """Stop its denoising."""
        job.cancelled.set()
        await job.over.wait()

    async def remove(self, job: ImageJob) -> bool:
        """Remove it, if it is still there."""
        job.fetched.set()
        return self._jobs.pop(job.id, None) is not None

    async def run(self, take: Callable[[ImageJob], None], *, has_room: Callable[[], bool]) -> None:
        """Return: there is no other work."""
