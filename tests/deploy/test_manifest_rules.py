"""Tests of the manifest rules: the demo has no problems, and one change violates each rule."""

import copy
from collections.abc import Callable

import pytest

from tests.deploy.manifest_rules import problems, quantity
from tests.deploy.manifests import K8S, Object, Objects, render

Change = Callable[[dict[str, Object]], object]


def demo() -> Objects:
    return copy.deepcopy([*render(K8S / "overlays/cpu-demo"), *render(K8S / "overlays/cpu-demo/job")])


def pod(objects: dict[str, Object], kind: str = "Deployment") -> Object:
    spec: Object = objects[kind]["spec"]["template"]["spec"]
    return spec


def container(objects: dict[str, Object], kind: str = "Deployment") -> Object:
    first: Object = pod(objects, kind)["containers"][0]
    return first


CHANGES: dict[str, Change] = {
    "no RFC 1123 name": lambda o: o["Service"]["metadata"].update(name="Lithograph"),
    "namespace is None": lambda o: o["Service"]["metadata"].pop("namespace"),
    "is there twice": lambda o: o["ServiceAccount"]["metadata"].update(name="lithograph-trainer"),
    "label part-of=a b": lambda o: o["Job"]["spec"]["template"]["metadata"]["labels"].update({"part-of": "a b"}),
    "does not select its own pods": lambda o: o["Deployment"]["spec"]["selector"]["matchLabels"].update(x="y"),
    "spreads other pods": lambda o: pod(o)["topologySpreadConstraints"][0]["labelSelector"].update(matchLabels={}),
    "Service/lithograph: selects no pod": lambda o: o["Service"]["spec"]["selector"].update(x="y"),
    "Budget/lithograph: selects no pod": lambda o: o["PodDisruptionBudget"]["spec"].update(selector={}),
    "Policy/lithograph-service: selects no pod": lambda o: o["NetworkPolicy"]["spec"].update(podSelector={}),
    "targetPort web": lambda o: o["Service"]["spec"]["ports"][0].update(targetPort="web"),
    "wants ServiceAccount/nobody": lambda o: pod(o).update(serviceAccountName="nobody"),
    "wants ConfigMap/lithograph-gone": lambda o: container(o)["envFrom"][0]["configMapRef"].update(
        name="lithograph-gone"
    ),
    "wants PersistentVolumeClaim/gone": lambda o: pod(o)["volumes"][0]["persistentVolumeClaim"].update(
        claimName="gone"
    ),
    "wants Secret/keys": lambda o: container(o)["envFrom"].append({"secretRef": {"name": "keys"}}),
    "hostNetwork is set": lambda o: pod(o).update(hostNetwork=True),
    "may run as root": lambda o: pod(o)["securityContext"].pop("runAsNonRoot"),
    "no seccomp profile": lambda o: pod(o)["securityContext"].pop("seccompProfile"),
    "read as options": lambda o: pod(o).pop("enableServiceLinks"),
    "no kind that restricted pods may have": lambda o: pod(o)["volumes"].append({"name": "h", "hostPath": {}}),
    "may escalate": lambda o: container(o)["securityContext"].pop("allowPrivilegeEscalation"),
    "keeps capabilities": lambda o: container(o)["securityContext"].pop("capabilities"),
    "may write to its root": lambda o: container(o)["securityContext"].pop("readOnlyRootFilesystem"),
    "runs as root": lambda o: container(o)["securityContext"].update(runAsUser=0),
    "service:latest is not pinned": lambda o: container(o).update(image="registry.example.com:5000/service:latest"),
    "example.com/service is not pinned": lambda o: container(o).update(image="example.com/service"),
    "no request or no limit of memory": lambda o: container(o)["resources"]["limits"].pop("memory"),
    "'3GB' is no quantity": lambda o: container(o)["resources"]["limits"].update(memory="3GB"),
    "asks for more memory": lambda o: container(o)["resources"]["requests"].update(memory="4Gi"),
    "port name": lambda o: container(o)["ports"][0].update(name="http_port"),
    "livenessProbe is on no named port": lambda o: container(o)["livenessProbe"]["httpGet"].update(port=8000),
    "RUN is set twice": lambda o: container(o, "Job")["env"].append({"name": "RUN"}),
    "uses RUN, which is not set": lambda o: container(o, "Job")["env"].sort(key=lambda each: "value" not in each),
    "--seed=$(SEED) is not set": lambda o: container(o, "Job")["args"].append("--seed=$(SEED)"),
    "argument 1 is no string": lambda o: container(o, "Job")["args"].append(1),
    "two volumes at one path": lambda o: container(o)["volumeMounts"][0].update(mountPath="/tmp"),
    "mounts gone, which is no volume": lambda o: container(o)["volumeMounts"][0].update(name="gone"),
    "volume spare is mounted nowhere": lambda o: pod(o)["volumes"].append({"name": "spare", "emptyDir": {}}),
    "a Deployment's is Always": lambda o: pod(o).update(restartPolicy="Never"),
    "a Job's is Never": lambda o: pod(o, "Job").pop("restartPolicy"),
    "podFailurePolicy takes Never": lambda o: pod(o, "Job").update(restartPolicy="OnFailure"),
}


def test_the_demo_is_sound() -> None:
    assert problems(demo()) == []


@pytest.mark.parametrize("given", CHANGES)
def test_a_change_for_the_worse_is_seen(given: str) -> None:
    objects = demo()
    CHANGES[given]({each["kind"]: each for each in reversed(objects)})
    assert any(given in problem for problem in problems(objects)), problems(objects)


@pytest.mark.parametrize(
    ("given", "is_worth"), [("250m", 0.25), ("2", 2), ("1.5Gi", 1.5 * 2**30), ("3k", 3000), (1, 1)]
)
def test_quantities_are_read_as_the_api_server_reads_them(given: object, is_worth: float) -> None:
    assert quantity(given) == is_worth


@pytest.mark.parametrize("given", ["3GB", "1 Gi", "-1", "", "Gi", "0.5.1"])
def test_what_is_no_quantity_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match="no quantity"):
        quantity(given)
