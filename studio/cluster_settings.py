"""What trainings ask of a Kubernetes cluster: JSON that the studio is started with. No torch, and no client of it."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from longcat.errors import ConfigError
from studio.training_job import default_image
from trainer.config_file import read_object


class ClusterSettings(BaseModel):
    """Of every Job; what is not told here is as ``lithograph job submit`` has it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    kubeconfig: str | None = None
    """None: as a pod of the cluster, or ``~/.kube/config``."""
    context: str | None = None
    namespace: str | None = None
    image: str = Field(default_factory=default_image)
    gpus: int = 0
    cpu: str = "2"
    memory: str = "4Gi"
    data_claim: str | None = None
    """With the pictures, at /data."""
    adapters_claim: str | None = None
    """That the service reads, at /adapters."""
    training_claim: str | None = None
    """For checkpoints and records, at /output."""
    models_claim: str | None = None
    secret: str | None = None
    service_account: str | None = None
    queue: str | None = None
    """Kueue's LocalQueue."""
    deadline_seconds: int = 86_400
    retries: int = 3
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
