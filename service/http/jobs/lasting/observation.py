"""The leases of other replicas, as one replica sees them over time."""

import time
from collections.abc import Mapping


class Observation:
    """The times since when leases have been unchanged, by this process's monotonic clock.

    A replica that has just started knows of no lease how old it is: it waits for a whole ``lease_seconds``.
    """

    def __init__(self, lease_seconds: float) -> None:
        self._lease_seconds = lease_seconds
        self._seen: dict[str, tuple[str, float]] = {}

    def note(self, leases: Mapping[str, str]) -> list[str]:
        """Note the ETags of all leases, by job; return the jobs whose leases have ended."""
        now = time.monotonic()
        seen = self._seen
        self._seen = {
            job: seen[job] if job in seen and seen[job][0] == etag else (etag, now) for job, etag in leases.items()
        }
        return [job for job, (_, since) in self._seen.items() if now - since >= self._lease_seconds]

    def etag(self, job_id: str) -> str:
        """Return the ETag that was noted last."""
        return self._seen[job_id][0]
