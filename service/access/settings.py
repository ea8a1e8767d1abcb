"""The configuration of access, a group of the service's options."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from longcat.options import Configuration, Flag
from longcat.problem import Problem
from longcat.validation import ProblemValueError


class AccessConfig(Configuration):
    """Keys that requests must carry."""

    api_keys_file: Annotated[Path | None, Flag(metavar="FILE")] = None
    """File of API keys, made by `lithograph keys add`, which every request must carry one of, except to health and docs.
    Changes apply within a second. Without it, everyone who reaches the port can generate pictures."""
    metrics_key: Literal["auto", "required", "none"] = "auto"
    """Whether /metrics needs an API key with the role admin: auto requires it where a key is limited to some adapters, whose
    names metrics show."""
    admin_key: Annotated[str | None, Field(repr=False), Flag(is_secret=True)] = None
    """Bearer token for requests that change adapters; without it and without API keys, none are removed over HTTP. With API
    keys, it is one more key, which allows everything."""

    state_dir: Annotated[Path | None, Flag(metavar="DIRECTORY")] = None
    """Directory, on a local disk, that keeps what each key has used, for GET /v1/usage. Servers of one machine may share it.
    Without it, none is kept."""

    @model_validator(mode="after")
    def _check_metrics_key(self) -> Self:
        if self.metrics_key == "required" and self.api_keys_file is None:
            raise ProblemValueError(
                Problem(
                    code="metrics_key_without_keys",
                    template="there are no API keys that a request for metrics could carry",
                    remedy_template="give --api-keys-file, too",
                    field="metrics_key",
                    value=self.metrics_key,
                )
            )
        return self

    @property
    def has_keys(self) -> bool:
        """True if requests that change adapters need a key."""
        return self.admin_key is not None or self.api_keys_file is not None
