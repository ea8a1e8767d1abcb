"""The Kubernetes cluster that the studio trains on: JSON that it is started with. No torch, and no client of it."""

from pathlib import Path

from pydantic import ValidationError

from longcat.errors import ConfigError
from studio.job_settings import JobSettings
from trainer.config_file import read_object


class ClusterSettings(JobSettings):
    """Where it is, and what every Job asks of it."""

    kubeconfig: str | None = None
    """None: as a pod of the cluster, or ``~/.kube/config``."""
    context: str | None = None
    namespace: str | None = None
    data_dir: Path | None = None
    """Where the volume of ``data_claim`` is seen from here: datasets below it become paths below /data."""
    training_dir: Path | None = None
    """Where the volume of ``training_claim`` is seen from here, for live curves and validation pictures."""


def read_cluster_settings(given: str) -> ClusterSettings:
    """A file's path, or the JSON object itself, as fits into an environment variable. Raises ``ConfigError``."""
    try:
        if given.lstrip().startswith("{"):
            return ClusterSettings.model_validate_json(given)
        return ClusterSettings.model_validate(read_object(Path(given), "cluster"))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise ConfigError(f"cluster {given}: {where}: {first['msg']}") from error
