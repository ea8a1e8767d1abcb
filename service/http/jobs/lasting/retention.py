"""The removal of jobs that have been over for long enough.

The time of a job's end is by the clock of the replica that ended it. Clocks that differ by seconds shift the removal by as
much, which does not matter at times of hours.
"""

from collections.abc import Container
from datetime import UTC, datetime, timedelta

from service.http.jobs.lasting.files import JobFiles
from service.observability import metrics

_SHARE = 0.1
_LONGEST_INTERVAL_SECONDS = 600.0


class Retention:
    """The known ends of jobs. Each replica removes what has expired; removing a job twice is harmless."""

    def __init__(self, files: JobFiles, kept_seconds: float) -> None:
        self._files = files
        self._kept = timedelta(seconds=kept_seconds)
        self.interval_seconds = min(_LONGEST_INTERVAL_SECONDS, _SHARE * kept_seconds)
        self._ends: dict[str, datetime] = {}

    async def sweep(self, held: Container[str]) -> None:
        """Remove the jobs that have expired. Jobs with work left, ``held`` or leased, stay."""
        leases = await self._files.leases()
        ids = set(await self._files.ids())
        self._ends = {job_id: end for job_id, end in self._ends.items() if job_id in ids}
        for job_id in ids:
            if job_id in leases or job_id in held:
                continue
            if job_id not in self._ends and (end := await self._end_of(job_id)) is not None:
                self._ends[job_id] = end
            if job_id in self._ends and datetime.now(UTC) - self._ends[job_id] >= self._kept:
                await self._files.remove(job_id)
                metrics.JOBS_EXPIRED.inc()

    async def _end_of(self, job_id: str) -> datetime | None:
        """Return the time of a job's end; of a request that was never accepted, that of its arrival."""
        if (end := await self._files.end(job_id)) is not None:
            return end.finished_at
        request = await self._files.request(job_id)
        return None if request is None else request.created_at
