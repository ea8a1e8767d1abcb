"""Trainings on Kubernetes: submit, list, follow, cancel. The only module that imports its client.

Errors are ``ClusterError`` (it cannot be reached, or refuses), ``UnknownJobError`` and ``JobNameTakenError``.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import urllib3
from kubernetes import client
from kubernetes.config import (
    ConfigException,
    list_kube_config_contexts,
    load_incluster_config,
    new_client_from_config,
)

from longcat.errors import ClusterError, JobNameTakenError, UnknownJobError
from studio.training_job import CONTAINER, LABELS, QUEUE_LABEL, TrainingJob
from trainer.outcome import MEANINGS, Outcome

_SELECTOR = ",".join(f"{key}={value}" for key, value in LABELS.items())
_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_DEFAULT_FILE = Path("~/.kube/config")
_TIMEOUT_SECONDS = (5, 30)
"""To connect, and to be answered."""
_LONGEST_SILENCE_SECONDS = 86_400
"""Of a log that is followed; the client wants some number."""
_POLL_SECONDS = 1
_EXIT_CODES: Mapping[int, str] = {int(outcome): said for outcome, said in MEANINGS.items()} | {
    137: "killed",
    143: "told to stop before it could save a checkpoint",
}


class JobState(StrEnum):
    """Where a Job is."""

    QUEUED = "queued"
    """No pod runs yet: suspended by a queue, or waiting for room, volumes or its image."""
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLING = "cancelling"
    """Deleted; its pod saves a checkpoint."""

    @property
    def is_over(self) -> bool:
        """Nothing more will happen."""
        return self in (JobState.SUCCEEDED, JobState.FAILED)


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    """What the cluster knows of a Job."""

    name: str
    namespace: str
    state: JobState
    message: str | None
    """Why it waits or failed, for people."""
    exit_code: int | None
    """Of the newest pod that ended."""
    meaning: str | None
    """What that exit code says."""
    failures: int
    """Pods that failed so far."""
    created: datetime
    started: datetime | None
    finished: datetime | None
    image: str
    queue: str | None
    pod: str | None
    """The newest one, which ``logs`` reads."""
    pod_address: str | None
    """Its IP, where Prometheus metrics are on port 9100 while it runs."""


def connect(*, kubeconfig: str | None = None, context: str | None = None, namespace: str | None = None) -> "Cluster":
    """The cluster of a kubeconfig (several files are joined by ``:``), the one that this process is a pod of, or that of
    ``~/.kube/config``. The namespace is the context's or the pod's if none is given. Raises ``ClusterError``.
    """  # noqa: D205
    default = _DEFAULT_FILE.expanduser()
    if kubeconfig is None and context is None:
        settings = client.Configuration()
        with contextlib.suppress(ConfigException):
            load_incluster_config(client_configuration=settings)
            inside = _NAMESPACE_FILE.read_text(encoding="utf-8").strip() if _NAMESPACE_FILE.exists() else "default"
            return Cluster(client.ApiClient(settings), namespace=namespace or inside)
    if kubeconfig is None and not default.exists():
        raise ClusterError(
            f"no Kubernetes cluster: this is no pod, and {default} is not there; give --kubeconfig or set KUBECONFIG"
        )
    file = kubeconfig or str(default)
    try:
        api = new_client_from_config(config_file=file, context=context)
        contexts, active = list_kube_config_contexts(config_file=file)
    except (ConfigException, OSError, ValueError, TypeError) as error:
        raise ClusterError(f"kubeconfig {file}: {error}; check the file and its contexts") from error
    chosen = next((c for c in contexts if c["name"] == context), active)
    return Cluster(api, namespace=namespace or chosen["context"].get("namespace") or "default")


class Cluster:
    """The Jobs of one namespace."""

    def __init__(self, api: client.ApiClient, *, namespace: str) -> None:
        api.configuration.retries = False  # an unreachable cluster is said at once
        if not api.configuration.verify_ssl:  # whoever wrote insecure-skip-tls-verify knows
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        api.rest_client = type(api.rest_client)(api.configuration)
        self.namespace = namespace
        self._batch = client.BatchV1Api(api)
        self._core = client.CoreV1Api(api)

    def submit(self, job: TrainingJob) -> JobStatus:
        """Create the ConfigMap and the Job, which owns it: who deletes the Job deletes both."""
        config_map, body = job.objects()
        with self._errors(job.name):
            self._core.create_namespaced_config_map(self.namespace, config_map, _request_timeout=_TIMEOUT_SECONDS)
        try:
            with self._errors(job.name):
                created = self._batch.create_namespaced_job(self.namespace, body, _request_timeout=_TIMEOUT_SECONDS)
        except BaseException:
            with self._errors(job.name):
                self._core.delete_namespaced_config_map(job.name, self.namespace, _request_timeout=_TIMEOUT_SECONDS)
            raise
        owner = {
            "apiVersion": "batch/v1", "kind": "Job", "name": job.name, "uid": created.metadata.uid,
            "blockOwnerDeletion": False, "controller": True,
        }  # fmt: skip
        with self._errors(job.name):
            self._core.patch_namespaced_config_map(
                job.name,
                self.namespace,
                {"metadata": {"ownerReferences": [owner]}},
                _request_timeout=_TIMEOUT_SECONDS,
            )
        return _status(created, ())

    def status(self, name: str) -> JobStatus:
        """How it stands. Raises ``UnknownJobError``."""
        with self._errors(name):
            job = self._batch.read_namespaced_job(name, self.namespace, _request_timeout=_TIMEOUT_SECONDS)
            return _status(job, self._pods(f"job-name={name}"))

    def list(self) -> tuple[JobStatus, ...]:
        """All that train, newest first; also those that ``kubectl apply`` made."""
        with self._errors("the jobs"):
            jobs = self._batch.list_namespaced_job(
                self.namespace, label_selector=_SELECTOR, _request_timeout=_TIMEOUT_SECONDS
            ).items
            pods = self._pods(_SELECTOR)
        of = {
            job.metadata.name: [p for p in pods if (p.metadata.labels or {}).get("job-name") == job.metadata.name]
            for job in jobs
        }
        found = (_status(job, of[job.metadata.name]) for job in jobs)
        return tuple(sorted(found, key=lambda status: status.created, reverse=True))

    def logs(
        self,
        name: str,
        *,
        follow: bool = False,
        tail: int | None = None,
        hear: Callable[[JobStatus], None] = lambda _: None,
    ) -> Iterator[str]:
        """Lines of its newest pod, or the last ``tail``; with ``follow``, of each pod as it comes, until the Job is over.

        ``hear`` is told, once for each reason, while there is no pod to read.
        """
        read: set[str] = set()
        heard: set[tuple[JobState, str | None]] = set()
        while True:
            status = self.status(name)
            if status.pod is not None and status.pod not in read and self._has_started(status.pod, name):
                yield from self._pod_logs(status.pod, name, follow=follow, tail=tail)
                read.add(status.pod)
            elif status.state.is_over:
                return
            else:
                if (why := (status.state, status.message)) not in heard:
                    heard.add(why)
                    hear(status)
                if follow:
                    time.sleep(_POLL_SECONDS)
            if not follow:
                return

    def cancel(self, name: str, *, at_once: bool = False) -> None:
        """Delete the Job: its pod is told to stop and saves a checkpoint, unless ``at_once``. What is in /output stays."""
        with self._errors(name):
            self._batch.delete_namespaced_job(
                name, self.namespace, propagation_policy="Foreground", _request_timeout=_TIMEOUT_SECONDS
            )
            if at_once:
                self._core.delete_collection_namespaced_pod(
                    self.namespace,
                    label_selector=f"job-name={name}",
                    grace_period_seconds=0,
                    _request_timeout=_TIMEOUT_SECONDS,
                )

    def _pods(self, selector: str) -> Sequence[Any]:
        found = self._core.list_namespaced_pod(
            self.namespace, label_selector=selector, _request_timeout=_TIMEOUT_SECONDS
        )
        return sorted(found.items, key=lambda pod: pod.metadata.creation_timestamp)

    def _has_started(self, pod: str, job: str) -> bool:
        with self._errors(job):
            state = _container(self._core.read_namespaced_pod(pod, self.namespace, _request_timeout=_TIMEOUT_SECONDS))
        return state is not None and (state.running is not None or state.terminated is not None)

    def _pod_logs(self, pod: str, job: str, *, follow: bool, tail: int | None) -> Iterator[str]:
        with self._errors(job):
            response = self._core.read_namespaced_pod_log(
                pod, self.namespace, container=CONTAINER, follow=follow, tail_lines=tail, _preload_content=False,
                _request_timeout=(_TIMEOUT_SECONDS[0], _LONGEST_SILENCE_SECONDS if follow else _TIMEOUT_SECONDS[1]),
            )  # fmt: skip
            rest = b""
            try:
                for chunk in response.stream():
                    *lines, rest = (rest + chunk).split(b"\n")
                    yield from (line.decode("utf-8", "replace") for line in lines)
                if rest:
                    yield rest.decode("utf-8", "replace")
            finally:
                response.release_conn()

    @contextlib.contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        """The API's errors as ours."""
        try:
            yield
        except client.ApiException as error:
            said = _message(error)
            match error.status:
                case 404 if '"' + name + '"' in said:
                    raise UnknownJobError(
                        f"job {name!r}: there is none in namespace {self.namespace}; see `lithograph job list`"
                    ) from error
                case 409:
                    raise JobNameTakenError(
                        f"job {name!r}: there is one in namespace {self.namespace}; give another name, or cancel it first"
                    ) from error
                case 401 | 403:
                    raise ClusterError(
                        f"the cluster forbids it: {said}; ask for a Role that may (k8s/components/studio has one)"
                    ) from error
                case _:
                    raise ClusterError(f"the cluster refuses (HTTP {error.status}): {said}") from error
        except urllib3.exceptions.HTTPError as error:
            host = self._batch.api_client.configuration.host
            raise ClusterError(f"the cluster at {host} cannot be reached: {error}; is KUBECONFIG right?") from error


def _status(job: Any, pods: Sequence[Any]) -> JobStatus:
    pod = pods[-1] if pods else None
    state, message = _state(job, pod)
    ended = next((code for code in map(_exit, reversed(pods)) if code is not None), None)
    conditions = {c.type: c for c in job.status.conditions or () if c.status == "True"}
    failed = conditions.get("Failed")
    return JobStatus(
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


def _state(job: Any, pod: Any | None) -> tuple[JobState, str | None]:
    """Where it is, and why."""
    conditions = {c.type: c for c in job.status.conditions or () if c.status == "True"}
    if "Complete" in conditions:
        return JobState.SUCCEEDED, None
    if "Failed" in conditions:
        failed = conditions["Failed"]
        return JobState.FAILED, f"{failed.reason}: {failed.message}"
    if job.metadata.deletion_timestamp:
        return JobState.CANCELLING, None
    if getattr(job.spec, "suspend", None):
        return JobState.QUEUED, "suspended: its queue has not admitted it"
    if pod is not None and pod.status.phase == "Running":
        return JobState.RUNNING, None
    return JobState.QUEUED, None if pod is None else _waits_for(pod)


def _waits_for(pod: Any) -> str | None:
    """What keeps a pod from starting: no room, no such image, no such volume."""
    state = _container(pod)
    if state is not None and state.waiting is not None:
        return ": ".join(part for part in (state.waiting.reason, state.waiting.message) if part)
    for condition in pod.status.conditions or ():
        if condition.status == "False" and condition.message:
            return f"{condition.reason}: {condition.message}"
    return None


def _container(pod: Any) -> Any | None:
    """The state of the container that trains; None before it has one."""
    statuses = {status.name: status for status in pod.status.container_statuses or ()}
    return statuses[CONTAINER].state if CONTAINER in statuses else None


def _exit(pod: Any) -> Any | None:
    state = _container(pod)
    return None if state is None else state.terminated


def _meaning(ended: Any | None) -> str | None:
    if ended is None:
        return None
    if ended.reason == "OOMKilled":
        return "killed: it took more memory than its limit; `lithograph plan` says what fits, --memory gives more"
    return meaning_of(ended.exit_code)


def meaning_of(exit_code: int) -> str:
    """What an exit code of the trainer says."""
    return _EXIT_CODES.get(exit_code, MEANINGS[Outcome.UNKNOWN])


def _message(error: client.ApiException) -> str:
    try:
        said: str = json.loads(error.body)["message"]
    except (ValueError, TypeError, KeyError):
        return str(error.reason)
    return said
