"""A training as a Kubernetes Job: its settings, validated, and the objects that are sent to a cluster. No torch.

``job.yaml`` beside this file is the Job's shape, the same as in k8s/base. Here names, volumes and sizes are filled in.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from lithograph.kubernetes.job_settings import JobSettings
from lithograph.kubernetes.volumes import MOUNTS, check_paths, volume_of, volumes_of
from longcat.errors import ConfigError, JobError
from trainer.config.options import TrainConfig
from trainer.config.reading.file import read_prompts

CONTAINER = "trainer"
LABELS: Mapping[str, str] = {"app.kubernetes.io/name": "lithograph", "app.kubernetes.io/component": "trainer"}
"""Labels of every training's Job and pods, by which ``lithograph job list`` finds them."""
RUN_LABEL = "app.kubernetes.io/instance"
"""Label with the name of the training's directory below /output."""
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
CONFIG_FILE = "config.json"

_TEMPLATE = Path(__file__).parent / "job.yaml"
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_PUBLISH_TO = "LITHOGRAPH_TRAIN_PUBLISH_TO"
_SET_BY_THE_JOB = ("output_dir", "cache_dir", "resume_from_checkpoint", "metrics_port")
"""Options that ``job.yaml`` sets in the environment, which takes precedence over the file."""


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """One training on a cluster. Raises ``JobError`` or ``ConfigError`` for a field that is wrong."""

    name: str
    """Name of the Job, its ConfigMap, and its directory below /output. The same name continues from its checkpoint."""
    config: TrainConfig
    """Paths in it are the container's: below /data, /adapters, /output or /models."""
    settings: JobSettings
    """Resources in the cluster."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise JobError(
                "job_name_not_allowed",
                "not a name that Kubernetes accepts",
                remedy="give lower-case letters, digits and '-', at most 63",
                field="name",
                value=self.name,
            )
        if not self.config.datasets:
            raise ConfigError(
                "job_without_pictures",
                "missing",
                remedy="give the directory of the pictures: /data/..., or s3://bucket/prefix",
                field="instance_data_dir",
            )
        if self.config.publish_to is None:
            raise ConfigError(
                "job_without_storage",
                "missing",
                remedy="give the storage of the adapter: file:///adapters, or s3://bucket/prefix",
                field="publish_to",
            )
        check_paths(self.config)
        if "data" in self.volumes and self.settings.data_claim is None:
            raise JobError(
                "job_without_data_claim",
                "missing, and the pictures are below /data",
                remedy="give the PersistentVolumeClaim that holds them, with --data",
                field="data_claim",
            )

    @property
    def volumes(self) -> frozenset[str]:
        """Volumes that the pod mounts."""
        return volumes_of(self.config)

    def objects(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the ConfigMap and the Job for the API; the namespace is the request's."""
        return self._config_map(), self._job()

    def manifest(self, *, namespace: str | None = None) -> str:
        """Return both as YAML, for ``kubectl apply -f -``."""
        objects = self.objects()
        if namespace is not None:
            for described in objects:
                described["metadata"]["namespace"] = namespace
        documents: str = yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
        return documents

    def _config_map(self) -> dict[str, Any]:
        options = self.config.model_dump(mode="json", exclude_unset=True)
        if self.config.user_prompt_library is not None and volume_of(str(self.config.user_prompt_library)) is None:
            # The file exists here but not in the pod: its prompts are copied.
            del options["user_prompt_library"]
            options["validation_prompts"] = [
                *self.config.validation_prompts, *read_prompts(self.config.user_prompt_library)
            ]  # fmt: skip
        text = json.dumps({k: v for k, v in options.items() if k not in _SET_BY_THE_JOB}, ensure_ascii=False, indent=1)
        return {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": self.name, "labels": dict(LABELS)},
            "immutable": True,
            "data": {CONFIG_FILE: text},
        }

    def _job(self) -> dict[str, Any]:
        job, settings = template(), self.settings
        spec, pod = job["spec"], job["spec"]["template"]["spec"]
        job["metadata"] = {"name": self.name, "labels": dict(LABELS)}
        spec["template"]["metadata"]["labels"] = {**LABELS, RUN_LABEL: self.name}
        spec["backoffLimit"] = settings.retries
        spec["activeDeadlineSeconds"] = settings.deadline_seconds
        if settings.queue:
            job["metadata"]["labels"][QUEUE_LABEL] = settings.queue
            spec["suspend"] = True
        if settings.service_account:
            pod["serviceAccountName"] = settings.service_account
        if settings.gpus:
            pod["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
        self._fill_container(pod["containers"][0])
        pod["volumes"] = [self._volume(volume) for volume in pod["volumes"] if self._has(volume)]
        if "data" in self.volumes:
            pod["volumes"].append(self._volume({"name": "data", "persistentVolumeClaim": {"readOnly": True}}))
        return job

    def _fill_container(self, container: dict[str, Any]) -> None:
        settings = self.settings
        container["image"] = settings.image
        size = {"cpu": settings.cpu, "memory": settings.memory}
        limits = size | ({"nvidia.com/gpu": str(settings.gpus)} if settings.gpus else {})
        container["resources"] = {"requests": size, "limits": limits}
        # The environment takes precedence over the file, which has this option.
        container["env"] = [variable for variable in container["env"] if variable["name"] != _PUBLISH_TO]
        if settings.secret:
            container["envFrom"].append({"secretRef": {"name": settings.secret}})
        container["volumeMounts"] = [mount for mount in container["volumeMounts"] if self._has(mount)]
        if "data" in self.volumes:
            container["volumeMounts"].append({"name": "data", "mountPath": MOUNTS["data"], "readOnly": True})

    def _has(self, volume: dict[str, Any]) -> bool:
        return volume["name"] not in MOUNTS or volume["name"] in self.volumes

    def _volume(self, volume: dict[str, Any]) -> dict[str, Any]:
        name = volume["name"]
        if name == "config":
            return {"name": name, "configMap": {"name": self.name}}
        claim = self.settings.claim(name) if name in MOUNTS else None
        if claim is None:
            return volume
        return {"name": name, "persistentVolumeClaim": volume.get("persistentVolumeClaim", {}) | {"claimName": claim}}


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines as a block."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def template() -> dict[str, Any]:
    """Return a fresh copy of ``job.yaml``."""
    # Through JSON: objects that YAML shares by anchors become separate ones.
    job: dict[str, Any] = json.loads(_template_json())
    return job


@lru_cache(maxsize=1)
def _template_json() -> str:
    return json.dumps(yaml.safe_load(_TEMPLATE.read_text(encoding="utf-8")))
