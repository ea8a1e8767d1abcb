"""What a training asks of a Kubernetes cluster, the same for ``lithograph job`` and for the studio. No torch."""

import re
from importlib.metadata import version
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError


def default_image() -> str:
    """The trainer's image of this version, as ``make images`` names it."""
    return f"lithograph-trainer:{version('lithograph')}"


def _form(pattern: str, said: str) -> AfterValidator:
    """Text that the API server would refuse is refused here, with what to give instead."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise PydanticCustomError("form", "give {said}", {"said": said})
        return text

    return AfterValidator(check)


_ObjectName = Annotated[str, _form(r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?", "the name of an object in the namespace")]


class JobSettings(BaseModel):
    """Of every Job, whatever it trains. A wrong field raises ``ValidationError``, which names it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    image: Annotated[str, _form(r"\S+", "an image's name and tag")] = Field(default_factory=default_image)
    """The trainer's image. Default: lithograph-trainer of this version."""
    gpus: int = Field(default=0, ge=0)
    """nvidia.com/gpu of a pod."""
    cpu: Annotated[str, _form(r"[1-9]\d*m?|\d+\.\d+", "cores as 2, 0.5 or 500m")] = "2"
    """Cores requested, and the limit: 2, 500m."""
    memory: Annotated[str, _form(r"[1-9]\d*(Mi|Gi|Ti|M|G|T)", "bytes as 4Gi or 512Mi")] = "4Gi"
    """Requested, and the limit."""
    data_claim: _ObjectName | None = None
    """PersistentVolumeClaim with the pictures, at /data; not needed with s3://."""
    adapters_claim: _ObjectName | None = None
    """With the adapters that are served, at /adapters; not needed with s3://. Default: lithograph-adapters."""
    training_claim: _ObjectName | None = None
    """For checkpoints, caches and records, at /output. Default: lithograph-training."""
    models_claim: _ObjectName | None = None
    """That keeps downloaded weights, at /models; without one, every pod downloads them."""
    secret: _ObjectName | None = None
    """Secret whose keys become the environment: AWS_ACCESS_KEY_ID, HF_TOKEN."""
    service_account: _ObjectName | None = None
    """For S3 without keys. Default: lithograph-trainer."""
    queue: _ObjectName | None = None
    """Kueue's LocalQueue, which starts the Job when there is room."""
    deadline_seconds: int = Field(default=86_400, ge=1)
    """It is stopped and has failed after that."""
    retries: int = Field(default=3, ge=0)
    """After failures that trying again can mend; preemptions do not count."""

    def claim(self, volume: str) -> str | None:
        """The claim that was named for a volume."""
        name: str | None = getattr(self, f"{volume}_claim")
        return name
