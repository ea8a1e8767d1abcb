"""The objects that ``kubectl apply -k`` would apply: valid, complete, and consistent with the code."""

import json
import os
import re
import shlex
from pathlib import Path

import click
import kubernetes_validate
import pytest
import yaml
from click.testing import CliRunner

from lithograph.__main__ import cli
from service.config import AdapterConfig
from tests.deploy.manifest_rules import problems, quantity
from tests.deploy.manifests import K8S, Object, Objects, containers, pod_template, render

CUSTOM = {
    "ClusterQueue", "LocalQueue", "PodMonitor", "PrometheusRule", "ResourceFlavor", "ScaledObject", "ServiceMonitor",
    "TrainingRuntime", "TrainJob",
}  # fmt: skip
"""Kinds that operators define; test_manifest_operators.py checks them."""
RECENT = ("1.35", "1.36", "1.37")
OVERLAYS = sorted(path.parent for path in (K8S / "overlays").rglob("kustomization.yaml"))
BASES = sorted(path.parent for path in (K8S / "base").rglob("kustomization.yaml"))


def name_of(folder: Path) -> str:
    return str(folder.relative_to(K8S))


def by_hand(namespace: str) -> Objects:
    """Return the Secrets that operators create themselves, as docs/kubernetes.md describes."""
    names = ("lithograph-studio", "lithograph-c2pa")
    return [
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": each, "namespace": namespace}} for each in names
    ]


def beside(overlay: Path) -> Objects:
    """Return the objects around an overlay: a training's overlay (``gpu`` for ``gpu/job``), and the cluster's own."""
    around = render(overlay.parent) if (overlay.parent / "kustomization.yaml").exists() else []
    files = overlay.glob("cluster-*.yaml")
    return [*around, *by_hand("lithograph"), *(each for file in files for each in yaml.safe_load_all(file.read_text()))]


def of_kind(kind: str, objects: Objects) -> Objects:
    return [each for each in objects if each["kind"] == kind]


def pods_of(objects: Objects) -> list[Object]:
    return [pod for each in objects if (pod := pod_template(each)) is not None]


def trainer_of(job: Object) -> Object:
    return next(each for each in containers(job["spec"]["template"]) if each["name"] == "trainer")


every_overlay = pytest.mark.parametrize("overlay", OVERLAYS, ids=name_of)


@pytest.mark.parametrize("version", RECENT)
def test_the_api_servers_schemas_accept_every_object(version: str) -> None:
    objects = [each for overlay in OVERLAYS for each in render(overlay) if each["kind"] not in CUSTOM]
    for different in {json.dumps(each): each for each in objects}.values():
        kubernetes_validate.validate(different, version, strict=True)


def test_a_field_that_is_unknown_to_the_api_server_is_found() -> None:
    (service,) = of_kind("Service", render(K8S / "overlays/cpu-demo"))
    service["spec"]["ports"][0]["targetport"] = "http"
    with pytest.raises(kubernetes_validate.ValidationError, match="targetport"):
        kubernetes_validate.validate(service, RECENT[-1], strict=True)


@every_overlay
def test_objects_fit_together(overlay: Path) -> None:
    assert problems(render(overlay), beside=beside(overlay)) == []


@pytest.mark.parametrize("base", BASES, ids=name_of)
def test_bases_leave_namespace_tag_and_size_to_overlays(base: Path) -> None:
    for each in render(base):
        assert "namespace" not in each["metadata"]
        assert "replicas" not in each.get("spec", {})
        assert "resources" not in each.get("spec", {})
        for container in containers(pod) if (pod := pod_template(each)) else []:
            assert ":" not in container["image"]
            assert "resources" not in container


@every_overlay
def test_configmaps_are_immutable_and_named_by_their_content(overlay: Path) -> None:
    for each in of_kind("ConfigMap", render(overlay)):
        if "grafana_dashboard" in each["metadata"].get("labels", {}):
            continue  # none of our pods reads it, and its reader watches for changes
        assert each["immutable"] is True
        assert len(each["metadata"]["name"].rpartition("-")[2]) == 10, each["metadata"]["name"]


@every_overlay
def test_pods_without_calls_to_the_api_server_mount_no_token(overlay: Path) -> None:
    objects = render(overlay)
    asking = {subject["name"] for binding in of_kind("RoleBinding", objects) for subject in binding["subjects"]}
    assert not of_kind("ClusterRole", objects)
    for account in of_kind("ServiceAccount", objects):
        assert account["automountServiceAccountToken"] is False
    for each in objects:
        if (pod := pod_template(each)) is not None:
            holds = pod["spec"].get("automountServiceAccountToken", True)
            assert holds == (pod["spec"]["serviceAccountName"] in asking)


@every_overlay
def test_a_service_is_replaced_without_losing_a_request(overlay: Path) -> None:
    objects = render(overlay)
    for deployment in of_kind("Deployment", objects):
        if deployment["metadata"]["name"] != "lithograph":
            continue
        pod = deployment["spec"]["template"]["spec"]
        service = pod["containers"][0]
        environment = environment_of(service, objects)
        assert deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
        prestop = int(service["lifecycle"]["preStop"]["exec"]["command"][1])
        longest = float(environment["LITHOGRAPH_SERVE_TIMEOUT_SECONDS"])
        grace = float(environment["LITHOGRAPH_SERVE_GRACE_SECONDS"])
        assert grace > longest
        linger = float(environment["LITHOGRAPH_SERVE_LINGER_SECONDS"])
        assert linger > 0
        assert pod["terminationGracePeriodSeconds"] > prestop + linger + grace + 10
        startup = service["startupProbe"]
        assert startup["failureThreshold"] * startup["periodSeconds"] >= 1800
        assert {"livenessProbe", "readinessProbe"} <= service.keys()


def environment_of(container: Object, objects: Objects) -> dict[str, str]:
    """Return the variables that are set as text or from ConfigMaps."""
    maps = {each["metadata"]["name"]: each["data"] for each in of_kind("ConfigMap", objects)}
    variables: dict[str, str] = {}
    for source in container.get("envFrom", []):
        if "configMapRef" in source:
            variables |= maps[source["configMapRef"]["name"]]
    return variables | {each["name"]: each["value"] for each in container.get("env", []) if "value" in each}


@every_overlay
def test_what_the_service_keeps_of_adapters_fits_its_limits(overlay: Path) -> None:
    objects = render(overlay)
    for service in (each for pod in pods_of(objects) for each in containers(pod) if each["name"] == "service"):
        environment, limits = environment_of(service, objects), service["resources"]["limits"]
        for resource, field in (("memory", "cache_mib"), ("ephemeral-storage", "disk_mib")):
            default = AdapterConfig.model_fields[field].default
            kept_mib = int(environment.get(f"LITHOGRAPH_SERVE_ADAPTER_{field.upper()}", default))
            assert kept_mib * 2**20 < 0.9 * quantity(limits[resource]), resource


@every_overlay
def test_every_option_in_the_environment_is_one_of_the_commands(overlay: Path) -> None:
    objects = render(overlay)
    known = set()
    for name in ("serve", "server"):
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        known |= {f"LITHOGRAPH_{name}_{option.name}".upper() for option in command.params if option.name}
    for container in (each for pod in pods_of(objects) for each in containers(pod)):
        given = {name for name in environment_of(container, objects) if name.startswith("LITHOGRAPH_SERVE")}
        assert given <= known
        if container["name"] == "service":
            mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
            assert ("/adapters" in mounts) == (
                environment_of(container, objects)["LITHOGRAPH_SERVE_ADAPTERS"] == "file:///adapters"
            )
        if container["image"].startswith("lithograph-service"):
            command = cli.get_command(click.Context(cli), container["args"][0])
            assert command is not None
            options = {opt for option in command.params for opt in option.opts}
            assert {argument for argument in container["args"] if argument.startswith("-")} <= options


def test_the_documentation_names_every_overlay_and_none_that_is_not_there() -> None:
    text = (K8S.parent / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    named = {K8S.parent / path for path in re.findall(r"(?<!lithograph/)\bk8s/[\w./-]*\w", text)}
    assert [path for path in named if not path.exists()] == []
    assert [path for path in OVERLAYS if path.name != "job" and path not in named] == []


def test_the_documented_submission_refers_to_objects_of_its_overlay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(K8S.parent)
    text = (K8S.parent / "docs" / "kubernetes.md").read_text(encoding="utf-8").replace("\\\n", " ")
    (command,) = re.findall(r"^lithograph (job submit .*)$", text, re.MULTILINE)
    result = CliRunner().invoke(cli, shlex.split(command.replace("submit", "render")))
    assert result.exit_code == 0, result.output
    assert problems(list(yaml.safe_load_all(result.stdout)), beside=render(K8S / "overlays" / "gpu")) == []


@pytest.mark.parametrize("overlay", ["cpu-demo", "gpu"])
@pytest.mark.parametrize(
    "components",
    [
        ["s3"],
        ["monitoring", "autoscale/hpa"],
        ["autoscale/keda", "s3", "monitoring"],
        ["studio", "s3"],
        ["c2pa", "s3"],
    ],
)
def test_components_go_together_in_a_namespace_of_ones_own(overlay: str, components: list[str], tmp_path: Path) -> None:
    here = Path(os.path.relpath(K8S, tmp_path))
    overlay = {
        "namespace": "pictures",
        "resources": [str(here / "overlays" / overlay)],
        "components": [str(here / "components" / each) for each in components],
        "images": [
            {"name": "lithograph-service", "newName": "registry.example.com/pictures"},
            {"name": "lithograph-studio", "newTag": "0.1.0"},
        ],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    objects = render(tmp_path)
    assert problems(objects, beside=by_hand("pictures")) == []
    assert {each["metadata"].get("namespace", "pictures") for each in objects} == {"pictures"}
    assert [each["metadata"]["name"] for each in of_kind("Namespace", objects)] == ["pictures"]
    (deployment,) = [each for each in of_kind("Deployment", objects) if each["metadata"]["name"] == "lithograph"]
    images = {each["image"] for each in containers(deployment["spec"]["template"])}
    assert images == {"registry.example.com/pictures:0.1.0"}


def test_the_signing_certificate_and_its_key_are_those_of_a_tls_secret() -> None:
    (deployment,) = of_kind("Deployment", render(K8S / "overlays/c2pa"))
    pod = deployment["spec"]["template"]["spec"]
    (service,) = pod["containers"]
    (volume,) = [each for each in pod["volumes"] if each.get("secret", {}).get("secretName") == "lithograph-c2pa"]
    (mount,) = [each for each in service["volumeMounts"] if each["name"] == volume["name"]]
    assert mount["readOnly"] is True
    assert "subPath" not in mount, "a mount of one file does not follow changes"
    assert volume["secret"]["defaultMode"] == 0o440
    assert pod["securityContext"]["fsGroup"]
    options = {each["name"]: each["value"] for each in service["env"] if "C2PA" in each["name"]}
    assert options == {
        "LITHOGRAPH_SERVE_C2PA_CERTIFICATE": f"{mount['mountPath']}/tls.crt",
        "LITHOGRAPH_SERVE_C2PA_KEY": f"{mount['mountPath']}/tls.key",
    }


_VERBS = {"read": "get", "list": "list", "create": "create", "patch": "patch", "delete": "delete"}
_RESOURCES = {"job": "jobs", "config_map": "configmaps", "pod": "pods", "pod_log": "pods/log"}


def test_the_studio_has_the_permissions_that_its_calls_need_and_no_others() -> None:
    code = (K8S.parent / "lithograph" / "kubernetes" / "cluster.py").read_text(encoding="utf-8")
    calls = re.findall(r"self\._(?:batch|core)\.(\w+?)_(collection_)?namespaced_(\w+)\(", code)
    asked = {("deletecollection" if collection else _VERBS[verb], _RESOURCES[kind]) for verb, collection, kind in calls}
    (role,) = of_kind("Role", render(K8S / "overlays" / "studio"))
    rules = [(verb, resource) for rule in role["rules"] for verb in rule["verbs"] for resource in rule["resources"]]
    assert sorted(rules) == sorted(asked)
