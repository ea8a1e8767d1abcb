"""Settings of the Kubernetes cluster that the studio trains on, given as JSON at start. No torch, no cluster client."""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lithograph.kubernetes.job_settings import JobSettings
from longcat.errors import ConfigError
from longcat.validation import problems_of
from trainer.config.reading.file import read_json


class ClusterSettings(JobSettings):
    """Address of a cluster, and the settings of every Job there."""

    kubeconfig: str | None = None
    """None uses the pod's service account, or ``~/.kube/config``."""
    context: str | None = None
    namespace: str | None = None
    data_dir: Path | None = None
    """Local mount point of the volume of ``data_claim``: datasets below it become paths below /data."""
    training_dir: Path | None = None
    """Local mount point of the volume of ``training_claim``, for live curves and validation pictures."""


def read_cluster_settings(given: str) -> ClusterSettings:
    """Parse a file, or the JSON object itself, as in an environment variable. Raises ``ConfigError``."""
    if not given.lstrip().startswith("{"):
        return _settings(read_json(Path(given), option="cluster"))
    try:
        return _settings(json.loads(given))
    except ValueError as error:
        raise ConfigError(
            "cluster_not_json", "not JSON: {cause}", remedy="give a JSON object or a file", field="cluster",
            value=given, cause=str(error),
        ) from error  # fmt: skip


def _settings(fields: Any) -> ClusterSettings:
    try:
        return ClusterSettings.model_validate(fields)
    except ValidationError as error:  # not an object; wrong fields are a ConfigError already
        raise ConfigError.of(problems_of(error, ClusterSettings)).within(field="cluster") from error
    except ConfigError as error:
        raise error.within(field="cluster") from error
