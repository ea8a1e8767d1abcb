"""The boundary of a shared studio: the paths and addresses that a training may read, write and call.

It is checked on the resolved configuration, whichever field or file a path came from, and again right before a training
starts, because a link may lead elsewhere by then. No torch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from longcat.errors import ConfigError, DataError, StorageError
from longcat.model.published.models import HUB_IDS
from longcat.problem import Problem
from longcat.storage.address import FileAddress, parse_address
from studio.datasets.datasets import Datasets
from trainer.config.dataset_options import DatasetConfig
from trainer.config.options import TrainConfig
from trainer.config.simpletuner.validation_input import ValidationInput


class Holds(Enum):
    """Meaning of an option's text."""

    PATH = auto()
    """A path on this machine."""
    DATA = auto()
    """A path on this machine, or ``s3://bucket/prefix``."""
    STORAGE = auto()
    """``file:///directory`` or ``s3://bucket/prefix``."""
    URL = auto()
    """An HTTP URL that the trainer calls."""
    MODEL = auto()
    """A model's name, its id on a hub, or its directory."""
    IN_DATASET = auto()
    """A file of the dataset."""
    BUCKET = auto()
    """A bucket of S3, with a prefix in another field."""
    STUDIO = auto()
    """A path that the studio sets."""


_Options = TrainConfig | DatasetConfig | ValidationInput
HOLDINGS: Mapping[type[_Options], Mapping[str, Holds]] = {
    TrainConfig: {
        "model_flavour": Holds.MODEL,
        "pretrained_model_name_or_path": Holds.MODEL,
        "init_lora": Holds.PATH,
        "instance_data_dir": Holds.DATA,
        "user_prompt_library": Holds.PATH,
        "cache_dir": Holds.STUDIO,
        "output_dir": Holds.STUDIO,
        "resume_from_checkpoint": Holds.STUDIO,
        "pushgateway_url": Holds.URL,
        "publish_to": Holds.STORAGE,
        "publish_endpoint_url": Holds.URL,
    },
    DatasetConfig: {
        "instance_data_dir": Holds.DATA,
        "caption_file": Holds.IN_DATASET,
        "aws_bucket_name": Holds.BUCKET,
        "aws_endpoint_url": Holds.URL,
    },
    ValidationInput: {"path": Holds.PATH},
}
"""Options with paths or addresses. A test requires every other text option to be listed as harmless."""


@dataclass(frozen=True, kw_only=True)
class Boundary:
    """The directories and addresses that the operator allows."""

    datasets: Datasets
    """Datasets, whose roots are the allowed directories."""
    own: Sequence[str]
    """Addresses that the studio itself uses: its adapter storage and its endpoint."""
    destinations: Sequence[str] | None
    """Other storage and HTTP addresses; None allows all of S3 and HTTP."""

    def problems(self, config: TrainConfig, *, here: bool) -> tuple[Problem, ...]:
        """Return a problem for each option outside the boundary; ``here``: the training runs on this machine."""
        found: list[Problem] = []
        for field, holds, value in _held(config):
            try:
                self._check(holds, value, here=here)
            except (ConfigError, DataError, StorageError) as error:  # the last: not the URI of a storage
                found += [replace(problem, field=field, value=value) for problem in error.problems]
        return tuple(found)

    def _check(self, holds: Holds, value: str, *, here: bool) -> None:
        match holds:
            case Holds.MODEL if here and _is_path(value):
                self.datasets.allowed(Path(value))
            case Holds.PATH if here:
                self.datasets.allowed(Path(value))
            case Holds.DATA | Holds.STORAGE if "://" in value:
                self._check_storage(value, here=here)
            case Holds.DATA if here:
                self.datasets.allowed(Path(value))
            case Holds.URL:
                self._check_address(value)

    def _check_storage(self, uri: str, *, here: bool) -> None:
        address = parse_address(uri)
        if not isinstance(address, FileAddress):
            self._check_address(str(address))
        elif here and not self._is_listed_folder(address.folder):
            self.datasets.allowed(address.folder)

    def _is_listed_folder(self, folder: Path) -> bool:
        listed = [parse_address(one) for one in (*self.own, *(self.destinations or ())) if one.startswith("file:")]
        folders = [one.folder.resolve() for one in listed if isinstance(one, FileAddress)]
        return any(folder.resolve().is_relative_to(allowed) for allowed in folders)

    def _check_address(self, value: str) -> None:
        if self.destinations is None or any(_covers(allowed, value) for allowed in (*self.own, *self.destinations)):
            return
        raise ConfigError(
            "destination_not_allowed",
            "not an address that trainings of this studio may use",
            remedy="start the studio with --allow-destination to allow it",
        )


def _held(config: TrainConfig) -> Iterator[tuple[str, Holds, str]]:
    """Yield the name, meaning and text of each option with a path or an address."""
    yield from _held_by(config)
    for index, given in enumerate(config.validation_input):
        for name, holds, value in _held_by(given):
            yield f"validation_input.{index}.{name}", holds, value
    for index, dataset in enumerate(config.data_backend_config):
        for name, holds, value in _held_by(dataset):
            field = f"data_backend_config.{index}.{name}"
            if holds is Holds.BUCKET:
                yield field, Holds.STORAGE, f"s3://{value}/{dataset.aws_data_prefix}"
            elif holds is not Holds.IN_DATASET:
                yield field, holds, value
            elif dataset.type == "local":
                yield field, Holds.PATH, str(Path(dataset.instance_data_dir or ".") / value)


def _held_by(model: _Options) -> Iterator[tuple[str, Holds, str]]:
    for name, holds in HOLDINGS[type(model)].items():
        if (value := getattr(model, name)) is not None:
            yield name, holds, str(value)


def _is_path(model: str) -> bool:
    """Return True for a path; a name or hub id counts if the working directory has a directory of that name."""
    return model not in ("embedded", *HUB_IDS) and (model.startswith(("/", ".", "~")) or Path(model).exists())


def _covers(allowed: str, value: str) -> bool:
    """Return True for an address at or below the allowed one: same scheme, host and port, and its path as a prefix."""
    one, other = urlsplit(allowed), urlsplit(value)
    if (one.scheme, one.hostname, _port(one)) != (other.scheme, other.hostname, _port(other)):
        return False
    prefix, path = ([part for part in split.path.split("/") if part] for split in (one, other))
    return ".." not in path and path[: len(prefix)] == prefix


def _port(parts: SplitResult) -> int | None:
    return parts.port or {"http": 80, "https": 443}.get(parts.scheme)
