"""The manifests of ``k8s/``, rendered as by ``kubectl apply -k``, without fields that the cluster is too old for."""

import subprocess
from collections.abc import Callable
from typing import Any

import yaml

from tests.deploy.kube_cluster import REPOSITORY, environment_with_kubectl

Manifest = dict[str, Any]
Version = tuple[int, int]

FAILURE_POLICIES: Version = (1, 26)
"""The first version that enables a Job's ``podFailurePolicy`` by default."""


def rendered(overlay: str, version: Version) -> list[Manifest]:
    text = subprocess.run(
        ["kubectl", "kustomize", REPOSITORY / "k8s" / "overlays" / overlay],
        env=environment_with_kubectl(), capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    manifests = [manifest for manifest in yaml.safe_load_all(text) if manifest]
    for kind, since, change in CHANGES:
        for manifest in manifests:
            if manifest["kind"] == kind and version < since:
                change(manifest)
    return manifests


def find(manifests: list[Manifest], kind: str) -> Manifest:
    (found,) = (manifest for manifest in manifests if manifest["kind"] == kind)
    return found


def _policy_v1beta1(budget: Manifest) -> None:
    budget["apiVersion"] = "policy/v1beta1"


def _no_unhealthy_policy(budget: Manifest) -> None:
    budget["spec"].pop("unhealthyPodEvictionPolicy", None)


def _no_failure_policy(job: Manifest) -> None:
    del job["spec"]["podFailurePolicy"]


# (kind, first version that has it, change for earlier versions). Every version accepts network policies and pod security
# labels; the cluster that the tests start does not enforce them.
CHANGES: list[tuple[str, Version, Callable[[Manifest], None]]] = [
    ("PodDisruptionBudget", (1, 21), _policy_v1beta1),
    ("PodDisruptionBudget", (1, 27), _no_unhealthy_policy),
    ("Job", FAILURE_POLICIES, _no_failure_policy),
]
