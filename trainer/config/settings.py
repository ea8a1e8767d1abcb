"""The parts of a configuration that stages, records and checkpoints take. No torch.

A stage declares a frozen dataclass whose fields are called as the options that it reads; ``select`` fills it.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from trainer.config.options import TrainConfig

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    _Settings = TypeVar("_Settings", bound=DataclassInstance)


def select(config: TrainConfig, settings: "type[_Settings]") -> "_Settings":
    """Return a stage's settings: each field is the option or property of the same name."""
    return settings(**{field.name: getattr(config, field.name) for field in dataclasses.fields(settings)})


def public_options(config: TrainConfig) -> dict[str, Any]:
    """Return the options that differ from their defaults, as JSON."""
    return config.model_dump(mode="json", exclude_defaults=True)


def hash_of(options: Mapping[str, Any]) -> str:
    """Return the SHA-256 of options, in whatever order they are given."""
    return hashlib.sha256(json.dumps(options, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
