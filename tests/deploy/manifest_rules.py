"""Rules for Kubernetes objects beyond a schema: names, quantities, references, pod security.

``problems`` applies small rules, each of which yields sentences that name the object.
"""

import re
from collections.abc import Iterator
from typing import Any

from tests.deploy.manifests import WORKLOADS, Object, Objects, containers, pod_template, title

_LABEL_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")  # RFC 1123
_SUBDOMAIN = re.compile(r"(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?")
_PORT_NAME = re.compile(r"(?=.{1,15}$)(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*")
_PINNED = re.compile(r"[^:@\s]+(:\d+/[^:@\s]+)?(:(?!latest$)[\w.-]+|@sha256:[0-9a-f]{64})")
_USED = re.compile(r"\$\((\w+)\)")
_SCALE = {"": 1, "m": 1e-3, **{unit: 1e3**n for n, unit in enumerate(" kMGTPE") if n}} | {
    f"{unit}i": 1024.0**n for n, unit in enumerate(" KMGTPE") if n
}
_CLUSTER_SCOPED = {"Namespace", "ClusterQueue", "ResourceFlavor", "PriorityClass", "ClusterTrainingRuntime"}


def quantity(given: Any) -> float:
    """Parse a quantity as the API server does. Raises ``ValueError``."""
    match = _QUANTITY.fullmatch(str(given))
    if match is None:
        raise ValueError(f"{given!r} is no quantity")
    return float(match[1]) * _SCALE[match[2] or ""]


def problems(objects: Objects, *, beside: Objects | None = None) -> list[str]:
    """Return all problems; the objects ``beside`` are in the cluster already."""
    present = [*objects, *(beside or [])]
    found = [*_names(objects), *_selectors(objects, present), *_ports(objects, present), *_references(objects, present)]
    for each in objects:
        if (pod := pod_template(each)) is not None:
            broken = [*_pod_security(pod), *_containers(pod), *_volumes(pod), *_restarts(each, pod)]
            found += [f"{title(each)}: {what}" for what in broken]
    return found


def _names(objects: Objects) -> Iterator[str]:
    titles = [title(each) for each in objects]
    yield from (f"{name} is there twice" for name in sorted({t for t in titles if titles.count(t) > 1}))
    for each in objects:
        about, meta, name = title(each), each["metadata"], each["metadata"]["name"]
        # A Service's name is a DNS label, and so is a Job's, because its pods' host names contain it.
        form = _LABEL_NAME if each["kind"] in ("Service", "Namespace", *WORKLOADS) else _SUBDOMAIN
        if not form.fullmatch(name):
            yield f"{about}: no RFC 1123 name"
        if (each["kind"] in _CLUSTER_SCOPED) == ("namespace" in meta):
            yield f"{about}: namespace is {meta.get('namespace')}"
        template = pod_template(each) or {"metadata": {}}
        for labels in (meta.get("labels", {}), template["metadata"].get("labels", {})):
            yield from (f"{about}: label {k}={v}" for k, v in labels.items() if not _LABEL_VALUE.fullmatch(v))


def _matches(selector: Object, labels: dict[str, str]) -> bool:
    if not isinstance(selector, dict) or not selector:
        return False  # an empty selector selects every pod of the namespace, trainings included
    return selector.items() <= labels.items()


def _selectors(objects: Objects, present: Objects) -> Iterator[str]:
    pods = [pod for each in present if (pod := pod_template(each)) is not None]
    for each in objects:
        kind, spec = each["kind"], each.get("spec", {})
        match kind:
            case "Service":
                selectors = [spec["selector"]]
            case "Deployment" | "PodDisruptionBudget" | "PodMonitor":
                selectors = [spec["selector"].get("matchLabels")]
            case "NetworkPolicy":
                selectors = [spec["podSelector"].get("matchLabels")]
            case _:
                continue
        if kind == "Deployment":
            if not _matches(selectors[0], each["spec"]["template"]["metadata"]["labels"]):
                yield f"{title(each)}: does not select its own pods"
            for spread in each["spec"]["template"]["spec"].get("topologySpreadConstraints", []):
                if spread["labelSelector"]["matchLabels"] != selectors[0]:
                    yield f"{title(each)}: spreads other pods than its own"
            continue
        # Objects that trainings share exist before the first and after the last training.
        is_for_jobs = (selectors[0] or {}).get("app.kubernetes.io/component") == "trainer"
        if not is_for_jobs and not any(_matches(selectors[0], pod["metadata"].get("labels", {})) for pod in pods):
            yield f"{title(each)}: selects no pod: {selectors[0]}"


def _ports(objects: Objects, present: Objects) -> Iterator[str]:
    for service in (each for each in objects if each["kind"] == "Service"):
        pods = [
            pod
            for each in present
            if (pod := pod_template(each)) and _matches(service["spec"]["selector"], pod["metadata"].get("labels", {}))
        ]
        for port in service["spec"].get("ports", []):
            named = {p.get("name") for pod in pods for c in containers(pod) for p in c.get("ports", [])}
            if port.get("targetPort") not in named:
                yield f"{title(service)}: targetPort {port.get('targetPort')} is no named port of its pods"
    served = {p["name"] for each in present if each["kind"] == "Service" for p in each["spec"].get("ports", [])}
    for monitor in (each for each in objects if each["kind"] == "ServiceMonitor"):
        yield from (
            f"{title(monitor)}: no Service has a port {endpoint['port']}"
            for endpoint in monitor["spec"]["endpoints"]
            if endpoint["port"] not in served
        )


def _required(pod: Object) -> Iterator[tuple[str, str]]:
    """Yield kind and name of the objects that a pod cannot start without."""
    spec = pod["spec"]
    yield "ServiceAccount", spec.get("serviceAccountName", "")
    for volume in spec.get("volumes", []):
        if "persistentVolumeClaim" in volume:
            yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]
        if "configMap" in volume and not volume["configMap"].get("optional"):
            yield "ConfigMap", volume["configMap"]["name"]
        if "secret" in volume and not volume["secret"].get("optional"):
            yield "Secret", volume["secret"]["secretName"]
    for container in containers(pod):
        sources = [*container.get("envFrom", []), *(e.get("valueFrom", {}) for e in container.get("env", []))]
        for source in sources:
            for kind in ("ConfigMap", "Secret"):
                field = kind[0].lower() + kind[1:]
                wanted = source.get(f"{field}Ref") or source.get(f"{field}KeyRef")
                if wanted and not wanted.get("optional"):
                    yield kind, wanted["name"]
    if "subdomain" in spec:
        yield "Service", spec["subdomain"]


def _references(objects: Objects, present: Objects) -> Iterator[str]:
    there = {(each["kind"], each["metadata"]["name"], each["metadata"].get("namespace")) for each in present}
    for each in objects:
        wanted = list(_required(pod)) if (pod := pod_template(each)) else []
        spec = each.get("spec", {})
        if each["kind"] in ("HorizontalPodAutoscaler", "ScaledObject"):
            target = spec["scaleTargetRef"]
            wanted.append((target.get("kind", "Deployment"), target["name"]))
        if each["kind"] == "RoleBinding":
            wanted.append((each["roleRef"]["kind"], each["roleRef"]["name"]))
            wanted += [(subject["kind"], subject["name"]) for subject in each["subjects"]]
        if each["kind"] == "TrainJob":
            wanted.append((spec["runtimeRef"]["kind"], spec["runtimeRef"]["name"]))
        if each["kind"] == "LocalQueue":
            wanted.append(("ClusterQueue", spec["clusterQueue"]))
        if each["kind"] == "ClusterQueue":
            wanted += [("ResourceFlavor", f["name"]) for group in spec["resourceGroups"] for f in group["flavors"]]
        if queue := each["metadata"].get("labels", {}).get("kueue.x-k8s.io/queue-name"):
            wanted.append(("LocalQueue", queue))
        for kind, name in wanted:
            namespace = None if kind in _CLUSTER_SCOPED else each["metadata"].get("namespace")
            if (kind, name, namespace) not in there:
                yield f"{title(each)}: wants {kind}/{name}, which is not there"


def _pod_security(pod: Object) -> Iterator[str]:
    """Check the restricted profile of the Pod Security Standards, and a little more."""
    spec = pod["spec"]
    context = spec.get("securityContext", {})
    for field in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"):
        if spec.get(field):
            yield f"{field} is set"
    if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
        yield "may run as root"
    if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "no seccomp profile"
    if spec.get("enableServiceLinks") is not False:
        yield "Services' variables would be read as options"
    for volume in spec.get("volumes", []):
        if not volume.keys() & {"configMap", "emptyDir", "persistentVolumeClaim", "projected", "secret"}:
            yield f"volume {volume['name']} is of no kind that restricted pods may have"
    for container in containers(pod):
        name, own = container["name"], container.get("securityContext", {})
        if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
            yield f"{name} may escalate its privileges"
        if own.get("capabilities") != {"drop": ["ALL"]}:
            yield f"{name} keeps capabilities"
        if own.get("readOnlyRootFilesystem") is not True:
            yield f"{name} may write to its root file system"
        if own.get("runAsUser") == 0 or own.get("runAsNonRoot") is False:
            yield f"{name} runs as root"


def _containers(pod: Object) -> Iterator[str]:
    for container in containers(pod):
        name = container["name"]
        if not _PINNED.fullmatch(container["image"]):
            yield f"{name}: image {container['image']} is not pinned"
        resources = container.get("resources", {})
        for kind in ("cpu", "memory"):
            if kind not in resources.get("requests", {}) or kind not in resources.get("limits", {}):
                yield f"{name}: no request or no limit of {kind}"
        try:
            limits = {kind: quantity(given) for kind, given in resources.get("limits", {}).items()}
            requests = {kind: quantity(given) for kind, given in resources.get("requests", {}).items()}
        except ValueError as error:
            yield f"{name}: {error}"
            continue
        for kind, asked in requests.items():
            if asked > limits.get(kind, asked):
                yield f"{name}: asks for more {kind} than it may have"
        ports = [port.get("name", "") for port in container.get("ports", [])]
        yield from (f"{name}: port name {port!r}" for port in ports if not _PORT_NAME.fullmatch(port))
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            if probe in container and container[probe].get("httpGet", {}).get("port") not in ports:
                yield f"{name}: {probe} is on no named port"
        yield from _variables(name, container)


def _variables(name: str, container: Object) -> Iterator[str]:
    known = {"JOB_COMPLETION_INDEX"}
    for variable in container.get("env", []):
        if variable["name"] in known:
            yield f"{name}: {variable['name']} is set twice"
        unknown = set(_USED.findall(variable.get("value", ""))) - known
        yield from (f"{name}: {variable['name']} uses {each}, which is not set before it" for each in sorted(unknown))
        known.add(variable["name"])
    for argument in (*container.get("command", []), *container.get("args", [])):
        if not isinstance(argument, str):
            yield f"{name}: argument {argument!r} is no string"
            continue
        yield from (f"{name}: {argument} is not set" for each in _USED.findall(argument) if each not in known)


def _volumes(pod: Object) -> Iterator[str]:
    volumes = [volume["name"] for volume in pod["spec"].get("volumes", [])]
    mounted = set()
    for container in containers(pod):
        paths = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
        if len(set(paths)) < len(paths):
            yield f"{container['name']}: two volumes at one path: {paths}"
        for mount in container.get("volumeMounts", []):
            mounted.add(mount["name"])
            if mount["name"] not in volumes:
                yield f"{container['name']}: mounts {mount['name']}, which is no volume"
    yield from (f"volume {name} is mounted nowhere" for name in volumes if name not in mounted)


def _restarts(each: Object, pod: Object) -> Iterator[str]:
    policy = pod["spec"].get("restartPolicy", "Always")
    if each["kind"] == "Deployment" and policy != "Always":
        yield f"restartPolicy {policy}: a Deployment's is Always"
    if each["kind"] in ("Job", "TrainingRuntime"):
        if policy == "Always":
            yield "restartPolicy Always: a Job's is Never or OnFailure"
        if "podFailurePolicy" in each["spec"] and policy != "Never":
            yield f"restartPolicy {policy}: podFailurePolicy takes Never"
