"""The Jobs of a cluster: submit, list, follow, cancel.

Errors are ``ClusterError`` (the API cannot be reached, or rejects a request), ``UnknownJobError`` and ``JobNameTakenError``.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import urllib3
from kubernetes import client

from lithograph.kubernetes.job_status import ClusterJob, JobState, container_state, job_status
from lithograph.kubernetes.training_job import CONTAINER, LABELS, TrainingJob
from longcat.errors import ClusterError, JobNameTakenError, UnknownJobError
from longcat.problem import Problem

_SELECTOR = ",".join(f"{key}={value}" for key, value in LABELS.items())
_TIMEOUT_SECONDS = (5, 30)
"""Time limits of connecting, and of reading the reply."""
_LONGEST_SILENCE_SECONDS = 86_400
"""Longest silence of a followed log; the client needs a finite number."""
_POLL_SECONDS = 1


class Cluster:
    """The Jobs of one namespace."""

    def __init__(self, api: client.ApiClient, *, namespace: str) -> None:
        api.configuration.retries = False  # an unreachable cluster is reported at once
        if not api.configuration.verify_ssl:  # requested by the kubeconfig's insecure-skip-tls-verify
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        api.rest_client = type(api.rest_client)(api.configuration)
        self.namespace = namespace
        self._batch = client.BatchV1Api(api)
        self._core = client.CoreV1Api(api)

    def submit(self, job: TrainingJob) -> ClusterJob:
        """Create the ConfigMap and the Job, which owns it, so that deleting the Job deletes both."""
        config_map, body = job.objects()
        with self._errors(job.name):
            self._core.create_namespaced_config_map(self.namespace, config_map, _request_timeout=_TIMEOUT_SECONDS)
        try:
            with self._errors(job.name):
                created = self._batch.create_namespaced_job(self.namespace, body, _request_timeout=_TIMEOUT_SECONDS)
        except BaseException:  # also an interruption, which is raised again: a ConfigMap without its Job would stay
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
        return job_status(created, ())

    def status(self, name: str) -> ClusterJob:
        """Return a Job's status. Raises ``UnknownJobError``."""
        with self._errors(name):
            job = self._batch.read_namespaced_job(name, self.namespace, _request_timeout=_TIMEOUT_SECONDS)
            return job_status(job, self._pods(f"job-name={name}"))

    def list(self) -> tuple[ClusterJob, ...]:
        """Return the status of every training, newest first, those made by ``kubectl apply`` included."""
        with self._errors("the jobs"):
            jobs = self._batch.list_namespaced_job(
                self.namespace, label_selector=_SELECTOR, _request_timeout=_TIMEOUT_SECONDS
            ).items
            pods = self._pods(_SELECTOR)
        of = {
            job.metadata.name: [p for p in pods if (p.metadata.labels or {}).get("job-name") == job.metadata.name]
            for job in jobs
        }
        found = (job_status(job, of[job.metadata.name]) for job in jobs)
        return tuple(sorted(found, key=lambda status: status.created, reverse=True))

    def logs(
        self,
        name: str,
        *,
        follow: bool = False,
        tail: int | None = None,
        on_wait: Callable[[ClusterJob], None] = lambda _: None,
    ) -> Iterator[str]:
        """Yield the log lines of the newest pod, or the last ``tail``; with ``follow``, of each pod to the Job's end.

        ``on_wait`` is called once for each reason for which there is no pod to read.
        """
        read: set[str] = set()
        reported: list[tuple[JobState, Problem | None]] = []
        while True:
            status = self.status(name)
            if status.pod is not None and status.pod not in read and self._has_started(status.pod, name):
                yield from self._pod_logs(status.pod, name, follow=follow, tail=tail)
                read.add(status.pod)
            elif status.state.is_over:
                return
            else:
                if (why := (status.state, status.message)) not in reported:
                    reported.append(why)
                    on_wait(status)
                if follow:
                    time.sleep(_POLL_SECONDS)
            if not follow:
                return

    def cancel(self, name: str, *, at_once: bool = False) -> None:
        """Delete the Job: its pod gets SIGTERM and saves a checkpoint, unless ``at_once``. Files in /output stay."""
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
            state = container_state(
                self._core.read_namespaced_pod(pod, self.namespace, _request_timeout=_TIMEOUT_SECONDS)
            )
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
        """Raise the API's errors as ours."""
        try:
            yield
        except client.ApiException as error:
            message = _message(error)
            match error.status:
                case 404 if '"' + name + '"' in message:
                    raise UnknownJobError(
                        "job_not_in_namespace",
                        "does not exist in namespace {namespace}",
                        remedy="see `lithograph job list`",
                        field="job",
                        value=name,
                        namespace=self.namespace,
                    ) from error
                case 409:
                    raise JobNameTakenError(
                        "job_name_in_namespace",
                        "exists already in namespace {namespace}",
                        remedy="give another name, or cancel that job first",
                        field="job",
                        value=name,
                        namespace=self.namespace,
                    ) from error
                case 401 | 403:
                    raise ClusterError(
                        "cluster_forbids",
                        "the cluster forbids it: {cause}",
                        remedy="request a Role that permits it, such as the one in k8s/components/studio",
                        cause=message,
                    ) from error
                case _:
                    raise ClusterError(
                        "cluster_rejects",
                        "the cluster rejects it (HTTP {status}): {cause}",
                        status=error.status,
                        cause=message,
                    ) from error
        except urllib3.exceptions.HTTPError as error:
            host = self._batch.api_client.configuration.host
            raise ClusterError(
                "no_connection_to_cluster",
                "the cluster at {host} cannot be reached: {cause}",
                remedy="check KUBECONFIG",
                host=host,
                cause=str(error),
            ) from error


def _message(error: client.ApiException) -> str:
    try:
        message: str = json.loads(error.body)["message"]
    except (ValueError, TypeError, KeyError):
        return str(error.reason)
    return message
