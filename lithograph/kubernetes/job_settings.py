"""The settings of a training's Job, the same for ``lithograph job`` and for the studio. No torch."""

import re
from importlib.metadata import version
from typing import Annotated

from pydantic import AfterValidator, Field

from longcat.options import Configuration, Flag
from longcat.problem import Problem
from longcat.validation import ProblemValueError


def default_image() -> str:
    """Return the trainer's image of this version, as ``make images`` names it."""
    return f"lithograph-trainer:{version('lithograph')}"


def _form(pattern: str, form: str) -> AfterValidator:
    """Return a validator of text that the API server would reject."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ProblemValueError(
                Problem(
                    code="not_of_this_form",
                    template="not of a form that Kubernetes accepts",
                    remedy_template="give {form}",
                    details={"form": form},
                )
            )
        return text

    return AfterValidator(check)


_ObjectName = Annotated[str, _form(r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?", "lower-case letters, digits, '-' and '.'")]
_Name = Annotated[_ObjectName | None, Flag(metavar="NAME")]


class JobSettings(Configuration):
    """The resources of a Job in the cluster, whatever it trains. A wrong field raises ``ConfigError``."""

    image: Annotated[str, _form(r"\S+", "name:tag")] = Field(default_factory=default_image)
    """Image of the trainer."""
    gpus: Annotated[int, Field(ge=0)] = 0
    """GPUs of a pod (nvidia.com/gpu)."""
    cpu: Annotated[str, _form(r"[1-9]\d*m?|\d+\.\d+", "2, 0.5 or 500m")] = "2"
    """Cores, as request and limit: 2, 500m."""
    memory: Annotated[str, _form(r"[1-9]\d*(Mi|Gi|Ti|M|G|T)", "4Gi or 512Mi")] = "4Gi"
    """Memory, as request and limit: 4Gi, 512Mi."""
    data_claim: Annotated[_ObjectName | None, Flag(name="data", metavar="CLAIM")] = None
    """PersistentVolumeClaim with the pictures, mounted at /data; not needed with s3://."""
    adapters_claim: Annotated[
        _ObjectName | None, Flag(name="adapters", metavar="CLAIM", default="lithograph-adapters")
    ] = None
    """Claim with the served adapters, mounted at /adapters; not needed with s3://."""
    training_claim: Annotated[
        _ObjectName | None, Flag(name="output", metavar="CLAIM", default="lithograph-training")
    ] = None
    """Claim for checkpoints, caches and records, mounted at /output."""
    models_claim: Annotated[_ObjectName | None, Flag(name="models", metavar="CLAIM")] = None
    """Claim that keeps downloaded weights, mounted at /models; without one, every pod downloads them."""
    secret: _Name = None
    """Secret whose keys become the environment: AWS_ACCESS_KEY_ID, HF_TOKEN."""
    service_account: Annotated[_ObjectName | None, Flag(metavar="NAME", default="lithograph-trainer")] = None
    """Service account, for S3 without keys."""
    queue: _Name = None
    """Kueue's LocalQueue, which starts the Job when its resources are free."""
    deadline_seconds: Annotated[int, Field(ge=1)] = 86_400
    """Time after which the Job is stopped and has failed."""
    retries: Annotated[int, Field(ge=0)] = 3
    """Retries after failures that may be temporary; preemptions do not count."""

    def claim(self, volume: str) -> str | None:
        """Return the claim given for a volume."""
        name: str | None = getattr(self, f"{volume}_claim")
        return name
