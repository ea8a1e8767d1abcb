"""Objects of kinds that operators define.

Those of KEDA, the Prometheus operator and Kubeflow Trainer are compared with models generated from their definitions; Kueue
has none for Python, so only the structure is checked.
"""

import importlib
import pkgutil
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydantic
import pytest
import yaml
from prometheus_client import REGISTRY

from tests.deploy.manifest_rules import problems, quantity
from tests.deploy.manifests import K8S, Object, containers, pod_template, render
from tests.deploy.test_manifests import CUSTOM, OVERLAYS, name_of, of_kind

importlib.import_module("service.observability.metrics")  # registers its metrics

ROOT = K8S.parent
MODELS = {
    "PodMonitor": "cloudcoil.models.prometheus_operator.v1:PodMonitor",
    "PrometheusRule": "cloudcoil.models.prometheus_operator.v1:PrometheusRule",
    "ScaledObject": "cloudcoil.models.keda.v1alpha1:ScaledObject",
    "ServiceMonitor": "cloudcoil.models.prometheus_operator.v1:ServiceMonitor",
    "TrainJob": "kubeflow_trainer_api.models.trainer_v1alpha1_train_job:TrainerV1alpha1TrainJob",
    "TrainingRuntime": "kubeflow_trainer_api.models.trainer_v1alpha1_training_runtime:TrainerV1alpha1TrainingRuntime",
}
"""Models by kind, imported when they are needed: that takes five seconds, which every other test would wait for."""
KUEUE = {"ClusterQueue", "LocalQueue", "ResourceFlavor"}


def as_read(each: Object) -> Any:
    """Return an object as its operator's model reads it. Raises ``pydantic.ValidationError``."""
    model = pkgutil.resolve_name(MODELS[each["kind"]])
    if hasattr(model, "from_dict"):  # Kubeflow's models read quantities only by this method
        return model.from_dict(each).to_dict()
    return model.model_validate(each).model_dump(by_alias=True, exclude_unset=True, mode="json")


def unread(given: Any, read: Any, where: str = "") -> Iterator[str]:
    """Yield the fields that a model ignores, which its operator does not know."""
    if isinstance(given, dict) and isinstance(read, dict):
        yield from (f"{where}.{key}" for key in given.keys() - read.keys())
        for key in given.keys() & read.keys():
            yield from unread(given[key], read[key], f"{where}.{key}")
    elif isinstance(given, list) and isinstance(read, list):
        for number, (one, other) in enumerate(zip(given, read, strict=True)):
            yield from unread(one, other, f"{where}[{number}]")


def wrong(each: Object) -> list[str]:
    """Return the problems for which the operator would reject an object."""
    try:
        read = as_read(each)
    except pydantic.ValidationError as error:
        return [f"{'.'.join(map(str, part['loc']))}: {part['msg']}" for part in error.errors()]
    return sorted(unread(each, read))


def test_every_custom_kind_is_looked_at() -> None:
    assert MODELS.keys() | KUEUE == CUSTOM


@pytest.mark.parametrize("overlay", OVERLAYS, ids=name_of)
def test_every_field_is_in_the_operators_schemas(overlay: Path) -> None:
    for each in render(overlay):
        if each["kind"] in MODELS:
            assert wrong(each) == [], each["metadata"]["name"]


def test_a_field_that_is_unknown_to_kubeflow_or_missing_is_found() -> None:
    (training,) = of_kind("TrainJob", render(K8S / "overlays/multi-node/trainjob"))
    training["spec"]["trainer"]["numNode"] = 2
    assert wrong(training) == [".spec.trainer.numNode"]
    del training["spec"]["runtimeRef"]["name"]
    assert wrong(training) == ["name: Input should be a valid string"]


def test_a_field_that_is_unknown_to_keda_or_missing_is_found() -> None:
    (scaled,) = of_kind("ScaledObject", render(K8S / "overlays/autoscale/keda"))
    scaled["spec"]["triggers"][0]["treshold"] = "1"
    assert wrong(scaled) == [".spec.triggers[0].treshold"]
    del scaled["spec"]["scaleTargetRef"]
    assert wrong(scaled) == ["spec.scaleTargetRef: Field required"]


def test_the_operators_rules_are_prometheus_own() -> None:
    (rules,) = of_kind("PrometheusRule", render(K8S / "overlays/monitoring"))
    ours = yaml.safe_load((ROOT / "deploy/prometheus/rules.yaml").read_text(encoding="utf-8"))
    assert rules["spec"] == ours, "deploy/prometheus/rules.yaml has changed: make alerts"


def test_prometheus_finds_the_service_and_every_training() -> None:
    objects = render(K8S / "overlays/monitoring")
    (service,) = of_kind("Service", objects)
    (monitor,) = of_kind("ServiceMonitor", objects)
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    (pods,) = of_kind("PodMonitor", objects)
    (port,) = [endpoint["port"] for endpoint in pods["spec"]["podMetricsEndpoints"]]
    for overlay in (path for path in OVERLAYS if path.name in ("job", "trainjob")):
        for pod in (pod for each in render(overlay) if (pod := pod_template(each))):
            assert pods["spec"]["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
            assert any(named["name"] == port for each in containers(pod) for named in each.get("ports", []))
    (policy,) = [p for p in of_kind("NetworkPolicy", objects) if p["metadata"]["name"] == "lithograph-monitoring"]
    assert {each["port"] for each in policy["spec"]["ingress"][0]["ports"]} == {"http", port}


def test_the_dashboard_is_found_by_grafanas_sidecar() -> None:
    maps = of_kind("ConfigMap", render(K8S / "overlays/monitoring"))
    (dashboard,) = [each for each in maps if each["metadata"].get("labels", {}).get("grafana_dashboard") == "1"]
    assert list(dashboard["data"]) == ["lithograph.json"]


def scaling_queries() -> list[str]:
    """Return the queries of KEDA, and of prometheus-adapter for the HorizontalPodAutoscaler."""
    (scaled,) = of_kind("ScaledObject", render(K8S / "overlays/autoscale/keda"))
    queries = [trigger["metadata"]["query"] for trigger in scaled["spec"]["triggers"]]
    (hpa,) = of_kind("HorizontalPodAutoscaler", render(K8S / "overlays/autoscale"))
    values = yaml.safe_load((K8S / "components/autoscale/hpa/adapter.yaml").read_text(encoding="utf-8"))
    (rule,) = values["rules"]["custom"]
    for metric in hpa["spec"]["metrics"]:
        name = metric["pods"]["metric"]["name"]
        matcher = re.search(r'__name__=~"([^"]+)"', rule["seriesQuery"])
        assert matcher
        assert re.fullmatch(matcher[1], name)
        query = rule["metricsQuery"].replace("<<.Series>>", name).replace("<<.GroupBy>>", "pod")
        queries.append(query.replace("<<.LabelMatchers>>", 'namespace="lithograph",pod=~"a|b"'))
    assert len(queries) == 4
    return queries


def test_replicas_follow_metrics_that_the_service_exports(tmp_path: Path) -> None:
    exported = {metric.name for metric in REGISTRY.collect()}
    queries = scaling_queries()
    for query in queries:
        assert set(re.findall(r"lithograph_\w+", query)) <= exported
    rules = [{"record": f"scaling:{number}", "expr": query} for number, query in enumerate(queries)]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "scaling", "rules": rules}]}))
    result = subprocess.run(["promtool", "check", "rules", str(file)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("overlay", ["autoscale", "autoscale/keda"])
def test_only_the_autoscaler_sets_the_number_of_replicas(overlay: str) -> None:
    (deployment,) = of_kind("Deployment", render(K8S / "overlays" / overlay))
    assert "replicas" not in deployment["spec"]


def test_a_training_waits_in_a_queue_that_has_room_for_it() -> None:
    cluster = list(yaml.safe_load_all((K8S / "overlays/kueue/cluster-queue.yaml").read_text(encoding="utf-8")))
    objects = [*render(K8S / "overlays/kueue"), *cluster]
    assert problems(objects) == []
    (job,) = of_kind("Job", render(K8S / "overlays/kueue/job"))
    assert job["spec"]["suspend"] is True
    (local,), (queue,) = of_kind("LocalQueue", objects), of_kind("ClusterQueue", objects)
    assert {each["apiVersion"] for each in objects if each["kind"] in KUEUE} == {"kueue.x-k8s.io/v1beta2"}
    assert local["metadata"]["name"] == job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
    (namespace,) = of_kind("Namespace", objects)
    assert (
        queue["spec"]["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
        == namespace["metadata"]["name"]
    )
    (group,) = queue["spec"]["resourceGroups"]
    for flavor in group["flavors"]:
        quota = {each["name"]: quantity(each["nominalQuota"]) for each in flavor["resources"]}
        assert list(quota) == group["coveredResources"]
        for kind, asked in job["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"].items():
            assert quantity(asked) <= quota[kind]


def test_nodes_that_train_together_agree_on_how_many_they_are() -> None:
    (job,) = of_kind("Job", render(K8S / "overlays/multi-node/job"))
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    trainer = pod["containers"][0]
    variables = {each["name"]: each.get("value") for each in trainer["env"]}
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == int(variables["NODES"])
    assert trainer["resources"]["limits"]["nvidia.com/gpu"] == variables["PROCESSES"]
    services = of_kind("Service", render(K8S / "overlays/multi-node"))
    (headless,) = [each for each in services if each["metadata"]["name"] == pod["subdomain"]]
    assert headless["spec"]["clusterIP"] == "None"
    assert f"--master-addr=$(JOB)-0.{pod['subdomain']}" in trainer["args"]
    assert f"--master-port={trainer['ports'][0]['containerPort']}" in trainer["args"]


def test_a_trainjob_ends_and_is_configured_as_a_job_is() -> None:
    (base,) = of_kind("Job", render(K8S / "overlays/multi-node/job"))
    (runtime,) = of_kind("TrainingRuntime", render(K8S / "overlays/multi-node/trainjob"))
    job = runtime["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]
    rules = base["spec"]["podFailurePolicy"]["rules"]
    rules[0]["onExitCodes"]["containerName"] = "node"  # Kubeflow's name for it
    assert job["spec"]["podFailurePolicy"]["rules"] == rules
    assert job["metadata"]["labels"] == {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    one, other = base["spec"]["template"]["spec"], job["spec"]["template"]["spec"]
    for field in ("securityContext", "terminationGracePeriodSeconds", "serviceAccountName", "tolerations"):
        assert one[field] == other[field]
    by_name = [{v["name"]: v for v in pod["volumes"]} for pod in (one, other)]
    assert by_name[0] == by_name[1]
    assert one["containers"][0]["resources"] == other["containers"][0]["resources"]
