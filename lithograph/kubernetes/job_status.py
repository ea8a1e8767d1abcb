"""The status of a Job: its state, and the problem that it waits for or failed with. No connection."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from lithograph.kubernetes.training_job import CONTAINER, QUEUE_LABEL
from longcat.problem import Problem
from trainer.record.outcome import KILLED, MEANINGS, TERMINATED, Outcome

_EXITS: Mapping[int, Problem] = {int(outcome): meaning for outcome, meaning in MEANINGS.items()} | {
    KILLED: Problem(code="exit_killed", template="killed", remedy_template="check the memory limit and the node"),
    TERMINATED: Problem(
        code="exit_terminated",
        template="terminated before it could save a checkpoint",
        remedy_template="start again",
    ),
}
"""The meaning of an exit code."""
_OVER_MEMORY = Problem(
    code="exit_over_memory_limit",
    template="killed: it took more memory than its limit",
    remedy_template="raise the Job's memory; `lithograph plan` shows what fits",
)
_IMAGE_REASONS = frozenset({"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"})
_STARTING_REASONS = frozenset({"ContainerCreating", "PodInitializing"})


class JobState(StrEnum):
    """The states of a Job."""

    QUEUED = "queued"
    """No pod runs yet: suspended by a queue, or waiting for resources, volumes or its image."""
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLING = "cancelling"
    """Deleted; its pod saves a checkpoint."""

    @property
    def is_over(self) -> bool:
        """True once its state is final."""
        return self in (JobState.SUCCEEDED, JobState.FAILED)


@dataclass(frozen=True, kw_only=True)
class ClusterJob:
    """A Job as the cluster reports it."""

    name: str
    namespace: str
    state: JobState
    message: Problem | None
    """The problem for which it waits, or with which it failed."""
    exit_code: int | None
    """Exit code of the newest pod that ended."""
    meaning: Problem | None
    """Meaning of that exit code."""
    failures: int
    """Pods that failed so far."""
    created: datetime
    started: datetime | None
    finished: datetime | None
    image: str
    queue: str | None
    pod: str | None
    """The newest pod, whose log ``logs`` reads."""
    pod_address: str | None
    """IP of that pod, which serves Prometheus metrics on port 9100 while it runs."""


def job_status(job: Any, pods: Sequence[Any]) -> ClusterJob:
    """Return the status of a Job and its pods, oldest first, as the API returns them."""
    pod = pods[-1] if pods else None
    ended = next((code for code in map(_exit, reversed(pods)) if code is not None), None)
    state, message = _state(job, pod)
    if state is JobState.FAILED and _is_over_memory(ended):
        message = _OVER_MEMORY
    failed = _conditions(job).get("Failed")
    return ClusterJob(
        name=job.metadata.name,
        namespace=job.metadata.namespace,
        state=state,
        message=message,
        exit_code=None if ended is None else ended.exit_code,
        meaning=_meaning(ended),
        failures=job.status.failed or 0,
        created=job.metadata.creation_timestamp,
        started=job.status.start_time,
        finished=job.status.completion_time or (failed.last_transition_time if failed else None),
        image=job.spec.template.spec.containers[0].image,
        queue=(job.metadata.labels or {}).get(QUEUE_LABEL),
        pod=pod.metadata.name if pod else None,
        pod_address=pod.status.pod_ip if pod else None,
    )


def _state(job: Any, pod: Any | None) -> tuple[JobState, Problem | None]:
    """Return a Job's state and the problem that explains it."""
    conditions = _conditions(job)
    if "Complete" in conditions:
        return JobState.SUCCEEDED, None
    if "Failed" in conditions:
        return JobState.FAILED, _failure(conditions["Failed"])
    if job.metadata.deletion_timestamp:
        return JobState.CANCELLING, None
    if getattr(job.spec, "suspend", None):
        return JobState.QUEUED, Problem(code="job_suspended", template="suspended: its queue has not admitted it")
    if pod is not None and pod.status.phase == "Running":
        return JobState.RUNNING, None
    return JobState.QUEUED, None if pod is None else _waits_for(pod)


def _conditions(job: Any) -> dict[str, Any]:
    """Return the conditions that hold, by their type."""
    return {c.type: c for c in job.status.conditions or () if c.status == "True"}


def _failure(failed: Any) -> Problem:
    """Return the problem of a Job's condition ``Failed``."""
    match failed.reason:
        case "DeadlineExceeded":
            return Problem(
                code="job_deadline_passed",
                template="the Job's deadline has passed",
                remedy_template="allow more time with deadline_seconds; the same name continues from its checkpoint",
            )
        case "BackoffLimitExceeded":
            return Problem(
                code="job_retries_failed",
                template="every attempt failed",
                remedy_template="read the log of the last one",
            )
        case "PodFailurePolicy":
            return Problem(
                code="job_beyond_retry",
                template="a retry would fail again ({cause})",
                remedy_template="read the log",
                details={"cause": failed.message},
            )
    return Problem(code="job_failed", template="the cluster ended it ({cause})", details={"cause": _cause(failed)})


def _waits_for(pod: Any) -> Problem | None:
    """Return the problem that keeps a pod from starting: resources, the image, a volume."""
    state = container_state(pod)
    if state is not None and state.waiting is not None:
        return _waiting(state.waiting)
    for condition in pod.status.conditions or ():
        if condition.status == "False" and condition.message:
            return _waiting(condition)
    return None


def _waiting(reported: Any) -> Problem:
    """Return the problem of a waiting container, or of a condition that does not hold."""
    cause = {"cause": _cause(reported)}
    if reported.reason in _IMAGE_REASONS:
        return Problem(
            code="pod_image_unavailable",
            template="the image cannot be pulled ({cause})",
            remedy_template="check its name, and the cluster's access to the registry",
            details=cause,
        )
    if reported.reason == "Unschedulable":
        return Problem(
            code="pod_unschedulable",
            template="no node has the resources or volumes that it requests ({cause})",
            remedy_template="request less, or add a node",
            details=cause,
        )
    if reported.reason == "CreateContainerConfigError":
        return Problem(
            code="pod_config_missing",
            template="a Secret or ConfigMap that it uses is missing or wrong ({cause})",
            remedy_template="create it",
            details=cause,
        )
    if reported.reason in _STARTING_REASONS:
        return Problem(code="pod_starting", template="the pod is starting ({cause})", details=cause)
    return Problem(code="pod_waiting", template="the pod waits ({cause})", details=cause)


def _cause(reported: Any) -> str:
    """Return the cluster's own message, in English."""
    return ": ".join(part for part in (reported.reason, reported.message) if part)


def container_state(pod: Any) -> Any | None:
    """Return the state of a pod's container that trains; None before it has one."""
    statuses = {status.name: status for status in pod.status.container_statuses or ()}
    return statuses[CONTAINER].state if CONTAINER in statuses else None


def _exit(pod: Any) -> Any | None:
    state = container_state(pod)
    return None if state is None else state.terminated


def _is_over_memory(ended: Any | None) -> bool:
    return ended is not None and ended.reason == "OOMKilled"


def _meaning(ended: Any | None) -> Problem | None:
    if ended is None:
        return None
    return _OVER_MEMORY if _is_over_memory(ended) else meaning_of(ended.exit_code)


def meaning_of(exit_code: int) -> Problem:
    """Return the meaning of the trainer's exit code."""
    return _EXITS.get(exit_code, MEANINGS[Outcome.UNKNOWN])
