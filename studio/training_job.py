"""A fine-tuning as Kubernetes runs it: what is asked for, checked, and the objects that a cluster is sent. No torch.

``job.yaml`` beside this file is the Job's shape, the same as in k8s/base. Here names, volumes and sizes are filled in.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from longcat.errors import ConfigError, JobError
from trainer.config import TrainConfig
from trainer.config_file import read_prompts

CONTAINER = "trainer"
LABELS: Mapping[str, str] = {"app.kubernetes.io/name": "lithograph", "app.kubernetes.io/component": "trainer"}
"""Of every Job and pod that trains: what ``lithograph job list`` finds."""
RUN_LABEL = "app.kubernetes.io/instance"
"""Names the training's directory below /output."""
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
CONFIG_FILE = "config.json"
MOUNTS: Mapping[str, str] = {"data": "/data", "adapters": "/adapters", "training": "/output", "models": "/models"}
"""Where each volume is in the container."""
IN_THE_IMAGE = "/examples"
"""Pictures to try it with, which need no volume."""

_TEMPLATE = Path(__file__).parent / "job.yaml"
_NAME = re.compile(r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")
_OBJECT = re.compile(r"^[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?$")
_CPU = re.compile(r"^([1-9]\d*m?|\d+\.\d+)$")
_MEMORY = re.compile(r"^[1-9]\d*(Mi|Gi|Ti|M|G|T)$")
_PUBLISH_TO = "LITHOGRAPH_TRAIN_PUBLISH_TO"
_SET_BY_THE_JOB = ("output_dir", "cache_dir", "resume_from_checkpoint", "metrics_port")
"""Options that ``job.yaml`` sets in the environment, which counts over the file."""


def default_image() -> str:
    """The trainer's image of this version, as ``make images`` names it."""
    return f"lithograph-trainer:{version('lithograph')}"


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """One fine-tuning on a cluster. Raises ``JobError`` or ``ConfigError`` naming the field that cannot be."""

    name: str
    """Of the Job, its ConfigMap, and its directory below /output. The same name again goes on from its checkpoint."""
    config: TrainConfig
    """Paths in it are the container's: below /data, /adapters, /output or /models."""
    image: str
    gpus: int = 0
    """nvidia.com/gpu of a pod."""
    cpu: str = "2"
    """Cores requested, and the limit: ``2``, ``500m``."""
    memory: str = "4Gi"
    """Requested, and the limit."""
    data_claim: str | None = None
    """PersistentVolumeClaim with the pictures, at /data; not needed with s3://."""
    adapters_claim: str | None = None
    """Claim that the service reads adapters from, at /adapters; None is ``job.yaml``'s. Not needed with s3://."""
    training_claim: str | None = None
    """Claim for checkpoints, caches and records, at /output; None is ``job.yaml``'s."""
    models_claim: str | None = None
    """Claim that keeps downloaded weights, at /models; None downloads them for every pod."""
    secret: str | None = None
    """Secret whose keys become the environment: AWS_ACCESS_KEY_ID and the like, HF_TOKEN."""
    service_account: str | None = None
    """None is ``job.yaml``'s; another one, for S3 without keys."""
    queue: str | None = None
    """Kueue's LocalQueue, which starts the Job when there is room."""
    deadline_seconds: int = 86_400
    """It is stopped and has failed after that."""
    retries: int = 3
    """Tries after failures that trying again can mend; preemptions do not count."""

    def __post_init__(self) -> None:
        for field, value, form, said in (
            ("name", self.name, _NAME, "lower-case letters, digits and '-', at most 63"),
            ("cpu", self.cpu, _CPU, "cores as 2, 0.5 or 500m"),
            ("memory", self.memory, _MEMORY, "bytes as 4Gi or 512Mi"),
            ("image", self.image, re.compile(r"^\S+$"), "an image's name and tag"),
            *((f"{volume} claim", self.claim(volume) or "x", _OBJECT, "a claim's name") for volume in MOUNTS),
            ("secret", self.secret or "x", _OBJECT, "a Secret's name"),
            ("service account", self.service_account or "x", _OBJECT, "a ServiceAccount's name"),
            ("queue", self.queue or "x", _OBJECT, "a LocalQueue's name"),
        ):
            if not form.match(value):
                raise JobError(f"{field} {value!r}: give {said}")
        for field, number, least in (
            ("gpus", self.gpus, 0),
            ("deadline", self.deadline_seconds, 1),
            ("retries", self.retries, 0),
        ):
            if number < least:
                raise JobError(f"{field} {number}: give at least {least}")
        if not self.config.datasets:
            raise ConfigError("instance_data_dir: say where the pictures are: /data/..., or s3://bucket/prefix")
        if self.config.publish_to is None:
            raise ConfigError("publish_to: say where the adapter goes: file:///adapters, or s3://bucket/prefix")
        for field, path in _paths(self.config):
            if _volume_of(path) is None and not _is_below(path, IN_THE_IMAGE):
                raise ConfigError(
                    f"{field} {path!r}: is no path in the Job's pod, which has {', '.join(MOUNTS.values())}; "
                    "give one below them" + (", or s3://bucket/prefix" if "dir" in field or "publish" in field else "")
                )
        if "data" in self.volumes and self.data_claim is None:
            raise JobError("data claim: say which PersistentVolumeClaim holds the pictures below /data")

    def claim(self, volume: str) -> str | None:
        """The claim that was named for a volume."""
        name: str | None = getattr(self, f"{volume}_claim")
        return name

    @property
    def volumes(self) -> frozenset[str]:
        """What the pod has to mount: ``training`` and ``models`` always, the others if the configuration has paths there."""
        used = {_volume_of(path) for _, path in _paths(self.config)} | {"training", "models"}
        return frozenset(volume for volume in used if volume)

    def objects(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The ConfigMap and the Job, as the API takes them; without a namespace, which is the cluster's to say."""
        return self._config_map(), self._job()

    def manifest(self, *, namespace: str | None = None) -> str:
        """The same as YAML, for ``kubectl apply -f -``."""
        objects = self.objects()
        if namespace is not None:
            for described in objects:
                described["metadata"]["namespace"] = namespace
        documents: str = yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
        return documents

    def _config_map(self) -> dict[str, Any]:
        said = self.config.model_dump(mode="json", exclude_unset=True)
        if self.config.user_prompt_library is not None and _volume_of(str(self.config.user_prompt_library)) is None:
            # A file that is here and not there: its prompts go along.
            del said["user_prompt_library"]
            said["validation_prompts"] = [
                *self.config.validation_prompts, *read_prompts(self.config.user_prompt_library)
            ]  # fmt: skip
        text = json.dumps({k: v for k, v in said.items() if k not in _SET_BY_THE_JOB}, ensure_ascii=False, indent=1)
        return {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": self.name, "labels": dict(LABELS)},
            "immutable": True,
            "data": {CONFIG_FILE: text},
        }

    def _job(self) -> dict[str, Any]:
        job = template()
        spec, pod = job["spec"], job["spec"]["template"]["spec"]
        job["metadata"] = {"name": self.name, "labels": dict(LABELS)}
        spec["template"]["metadata"]["labels"] = {**LABELS, RUN_LABEL: self.name}
        spec["backoffLimit"] = self.retries
        spec["activeDeadlineSeconds"] = self.deadline_seconds
        if self.queue:
            job["metadata"]["labels"][QUEUE_LABEL] = self.queue
            spec["suspend"] = True
        if self.service_account:
            pod["serviceAccountName"] = self.service_account
        if self.gpus:
            pod["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
        self._fill_container(pod["containers"][0])
        pod["volumes"] = [self._volume(volume) for volume in pod["volumes"] if self._has(volume)]
        if "data" in self.volumes:
            pod["volumes"].append(self._volume({"name": "data", "persistentVolumeClaim": {"readOnly": True}}))
        return job

    def _fill_container(self, container: dict[str, Any]) -> None:
        container["image"] = self.image
        size = {"cpu": self.cpu, "memory": self.memory}
        limits = size | ({"nvidia.com/gpu": str(self.gpus)} if self.gpus else {})
        container["resources"] = {"requests": size, "limits": limits}
        # The environment counts over the file, and this one is said in the file.
        container["env"] = [variable for variable in container["env"] if variable["name"] != _PUBLISH_TO]
        if self.secret:
            container["envFrom"] = [{"secretRef": {"name": self.secret}}]
        container["volumeMounts"] = [mount for mount in container["volumeMounts"] if self._has(mount)]
        if "data" in self.volumes:
            container["volumeMounts"].append({"name": "data", "mountPath": MOUNTS["data"], "readOnly": True})

    def _has(self, volume: dict[str, Any]) -> bool:
        return volume["name"] not in MOUNTS or volume["name"] in self.volumes

    def _volume(self, volume: dict[str, Any]) -> dict[str, Any]:
        name = volume["name"]
        if name == "config":
            return {"name": name, "configMap": {"name": self.name}}
        claim = self.claim(name) if name in MOUNTS else None
        if claim is None:
            return volume
        return {"name": name, "persistentVolumeClaim": volume.get("persistentVolumeClaim", {}) | {"claimName": claim}}


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as people write them."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def template() -> dict[str, Any]:
    """A fresh copy of ``job.yaml``."""
    # Through JSON: objects that YAML shares by anchors become separate ones.
    job: dict[str, Any] = json.loads(_template_json())
    return job


@lru_cache(maxsize=1)
def _template_json() -> str:
    return json.dumps(yaml.safe_load(_TEMPLATE.read_text(encoding="utf-8")))


def _paths(config: TrainConfig) -> Iterator[tuple[str, str]]:
    """Options that name files or directories, but for those that the Job sets itself."""
    for dataset in config.datasets:
        if dataset.type == "local":
            where = "instance_data_dir" if config.instance_data_dir else f"data_backend_config {dataset.id}"
            yield where, str(dataset.instance_data_dir)
    if config.publish_to and config.publish_to.startswith("file:"):
        yield "publish_to", config.publish_to.removeprefix("file://")
    if config.init_lora is not None:
        yield "init_lora", str(config.init_lora)
    library = config.user_prompt_library
    if library is not None and _volume_of(str(library)) is not None:
        yield "user_prompt_library", str(library)
    model = config.pretrained_model_name_or_path
    if model and (model.startswith((".", "~", "/")) or Path(model).is_dir()):
        yield "pretrained_model_name_or_path", model


def _volume_of(path: str) -> str | None:
    """The volume that a path is on; None if it is on none, or climbs out of it."""
    return next((volume for volume, mount in MOUNTS.items() if _is_below(path, mount)), None)


def _is_below(path: str, folder: str) -> bool:
    parts = PurePosixPath(path)
    return parts.is_relative_to(folder) and ".." not in parts.parts
