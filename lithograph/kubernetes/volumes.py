"""The volumes of a training's pod: where they are mounted, and which of them a configuration uses. No torch."""

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from longcat.errors import ConfigError
from longcat.storage.address import FileAddress, parse_address
from trainer.config.options import TrainConfig

MOUNTS: Mapping[str, str] = {"data": "/data", "adapters": "/adapters", "training": "/output", "models": "/models"}
"""Mount path of each volume in the container."""
IN_THE_IMAGE = "/examples"
"""Example pictures in the image, which need no volume."""


def check_paths(config: TrainConfig) -> None:
    """Raise ``ConfigError`` naming the first option whose path the pod does not have."""
    for field, path in _paths(config):
        if volume_of(path) is None and not _is_below(path, IN_THE_IMAGE):
            raise ConfigError(
                "path_not_in_pod",
                "not a path in the Job's pod, which has {mounts}",
                remedy="give one below these; pictures and adapters may also be at s3://bucket/prefix",
                field=field,
                value=path,
                mounts=", ".join(MOUNTS.values()),
            )


def volumes_of(config: TrainConfig) -> frozenset[str]:
    """Return the volumes that the pod mounts: ``training``, ``models``, and those on which it has paths."""
    used = {volume_of(path) for _, path in _paths(config)} | {"training", "models"}
    return frozenset(volume for volume in used if volume)


def volume_of(path: str) -> str | None:
    """Return the volume of a path; None if it is on none, or leaves it by ``..``."""
    return next((volume for volume, mount in MOUNTS.items() if _is_below(path, mount)), None)


def _paths(config: TrainConfig) -> Iterator[tuple[str, str]]:
    """Yield options that name files or directories, except those that the Job sets itself."""
    for dataset in config.datasets:
        if dataset.type == "local":
            where = "instance_data_dir" if config.instance_data_dir else f"data_backend_config {dataset.id}"
            yield where, str(dataset.instance_data_dir)
    if config.publish_to and isinstance(address := parse_address(config.publish_to), FileAddress):
        yield "publish_to", str(address.folder)
    if config.init_lora is not None:
        yield "init_lora", str(config.init_lora)
    for index, given in enumerate(config.validation_input):
        yield f"validation_input.{index}.path", str(given.path)
    library = config.user_prompt_library
    if library is not None and volume_of(str(library)) is not None:
        yield "user_prompt_library", str(library)
    model = config.pretrained_model_name_or_path
    if model and (model.startswith((".", "~", "/")) or Path(model).is_dir()):
        yield "pretrained_model_name_or_path", model


def _is_below(path: str, folder: str) -> bool:
    parts = PurePosixPath(path)
    return parts.is_relative_to(folder) and ".." not in parts.parts
