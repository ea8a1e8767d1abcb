"""The state of one adapter name on this server."""

import logging
import threading
import time
from dataclasses import dataclass, field

from longcat.adapter.manifest import Manifest
from longcat.errors import AdapterError
from longcat.logs import log_event
from longcat.problem import Problem
from service.adapters.listing import Mark
from service.adapters.version_problem import VersionProblem
from service.observability import metrics
from service.wire.messages import AdapterState, AdapterStatus

log = logging.getLogger("lithograph")


@dataclass(kw_only=True)
class RegistryEntry:
    """The state of one name. The lock of the entry table protects all fields."""

    name: str
    created_at: float = field(default_factory=time.monotonic)
    updating: threading.Lock = field(default_factory=threading.Lock)
    """Held while storage is read: one thread at a time processes a name."""
    is_queued: bool = False
    """True while a poll's update waits for a thread, or runs."""
    mark: Mark | None = None
    """ETags of the content last processed; None makes the next poll process the name again."""
    desired: int | None = None
    """The version that ``latest`` names."""
    served: Manifest | None = None
    before: Manifest | None = None
    """The version served before, until the weights of ``served`` are verified."""
    verified: str | None = None
    """SHA-256 of the last weights of this name that were verified."""
    problem: Problem | None = None
    """The problem for which the desired version is not served."""
    is_wanted: bool = False
    """True once the name was requested, required, loaded or pinned: new versions are verified before they are served."""
    unloaded: bool = False
    pinned: bool = False
    used_at: float | None = None
    requests: int = 0

    @property
    def is_new(self) -> bool:
        """True while no version has been processed: a poll may be processing the first one at this moment."""
        return self.served is None and self.problem is None and not self.unloaded

    @property
    def is_verified(self) -> bool:
        """True if the weights of the served version are verified."""
        return self.served is not None and self.served.weights.sha256 == self.verified

    def error(self) -> AdapterError:
        """Return the error of a request for a name of which no version is served."""
        if self.desired is None and self.problem is not None:
            return AdapterError.of([self.problem])
        return AdapterError(
            "adapter_refused",
            "version {version} is not served: {cause}",
            field="adapter",
            value=self.name,
            version=self.desired,
            cause=self.problem,
        )

    def serve(self, manifest: Manifest, *, is_verified: bool) -> None:
        """Serve a version from now on."""
        if self.unloaded:
            return
        is_new = self.served != manifest or self.problem is not None
        if is_verified:
            self.before, self.verified = None, manifest.weights.sha256
        elif self.served is not None and self.served != manifest:
            self.before = self.served
        self.served, self.problem = manifest, None
        if is_new:
            digest = manifest.weights.sha256
            log_event(log, "adapter_served", adapter=manifest.reference, rank=manifest.rank, sha256=digest)

    def record(self, found: VersionProblem) -> None:
        """Store the problem for which the desired version is not served; log and count it once."""
        is_known = self.problem is not None and found.is_same_as(self.problem)
        self.problem, self.mark = found.problem, None
        if is_known:
            return
        version = "latest" if self.desired is None else self.desired
        log_event(
            log,
            "adapter_refused",
            logging.WARNING,
            adapter=f"{self.name}@{version}",
            served=self.served.reference if self.served else "nothing",
            code=found.kind,
            reason=str(found.problem),
        )
        metrics.ADAPTER_REFUSALS.labels(found.kind).inc()

    def fall_back(self, manifest: Manifest, found: VersionProblem) -> None:
        """Serve the version before, if the weights of the served one have just failed."""
        if self.served is manifest:
            self.served, self.before = self.before, None
            self.record(found)

    def status(self) -> AdapterStatus:
        """Return the state as ``GET /v1/adapters`` reports it."""
        served = self.served
        if self.unloaded:
            state = AdapterState.UNLOADED
        elif served is None:
            state = AdapterState.REFUSED
        else:
            state = AdapterState.READY if self.problem is None else AdapterState.OUTDATED
        return AdapterStatus(
            name=self.name,
            state=state,
            desired_version=self.desired,
            version=served.version if served else None,
            verified=self.is_verified,
            sha256=served.weights.sha256 if served else None,
            rank=served.rank if served else None,
            modules=len(served.target_modules) if served else None,
            trigger_words=served.trigger_words if served else (),
            sampling=served.sampling if served else None,
            created=served.created if served else None,
            pinned=self.pinned,
            reason=None if self.problem is None else str(self.problem),
            problem=self.problem,
            last_used_seconds_ago=None if self.used_at is None else round(time.monotonic() - self.used_at, 1),
            requests=self.requests,
        )
