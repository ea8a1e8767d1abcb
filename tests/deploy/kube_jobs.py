"""Jobs of trainings on a cluster, their pods and their logs."""

import json
from typing import Any

from tests.deploy.kube_cluster import Cluster
from tests.deploy.kube_manifests import Manifest, find, rendered

SPACE = "--namespace=lithograph"


def job_named(cluster: Cluster, name: str, *options: str) -> list[Manifest]:
    """Apply the demo's Job under another name, with further options on its command line."""
    manifests = rendered("cpu-demo/job", cluster.version)
    job = find(manifests, "Job")
    job["metadata"]["name"] = name
    for labels in (job["metadata"]["labels"], job["spec"]["template"]["metadata"]["labels"]):
        labels["app.kubernetes.io/instance"] = name
    container_of(job)["args"] += options
    return manifests


def submit(cluster: Cluster, manifests: list[Manifest]) -> str:
    cluster.apply(manifests)
    return str(find(manifests, "Job")["metadata"]["name"])


def pods_of(cluster: Cluster, job: str) -> list[Manifest]:
    """Return the job's pods that are not terminating."""
    items: list[Manifest] = cluster.get(SPACE, "pods", f"--selector=job-name={job}")["items"]
    return [pod for pod in items if "deletionTimestamp" not in pod["metadata"]]


def ended(cluster: Cluster, job: str) -> Any:
    """Return the condition with which a Job has ended, or None."""
    conditions = cluster.get(SPACE, "job", job)["status"].get("conditions", [])
    ends = [one for one in conditions if one["type"] in ("Complete", "Failed") and one["status"] == "True"]
    return ends[0] if ends else None


def log_of(cluster: Cluster, pod: str) -> str:
    return cluster.kubectl(SPACE, "logs", pod, check=False)  # none yet: its container has not started


def told(cluster: Cluster, pod: str, event: str) -> Any:
    """Return the first line of an event in a training's log, or None."""
    lines = [json.loads(line) for line in log_of(cluster, pod).splitlines() if line.startswith("{")]
    return next((line for line in lines if line.get("event") == event), None)


def container_of(described: Manifest) -> Manifest:
    """Return the container of a pod or of an object that creates pods."""
    spec = described["spec"]
    (container,) = spec.get("template", {"spec": spec})["spec"]["containers"]
    found: Manifest = container
    return found
