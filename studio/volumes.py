"""What a training's pod has of the file system: where its volumes are, and which of them a configuration uses. No torch."""

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from longcat.errors import ConfigError
from trainer.config import TrainConfig

MOUNTS: Mapping[str, str] = {"data": "/data", "adapters": "/adapters", "training": "/output", "models": "/models"}
"""Where each volume is in the container."""
IN_THE_IMAGE = "/examples"
"""Pictures to try it with, which need no volume."""


def check_paths(config: TrainConfig) -> None:
    """Raise ``ConfigError`` naming the first option whose path the pod does not have."""
    for field, path in _paths(config):
        if volume_of(path) is None and not _is_below(path, IN_THE_IMAGE):
            raise ConfigError(
                f"{field} {path!r}: is no path in the Job's pod, which has {', '.join(MOUNTS.values())}; "
                "give one below them" + (", or s3://bucket/prefix" if "dir" in field or "publish" in field else "")
            )


def volumes_of(config: TrainConfig) -> frozenset[str]:
    """What the pod has to mount: ``training`` and ``models`` always, the others if the configuration has paths there."""
    used = {volume_of(path) for _, path in _paths(config)} | {"training", "models"}
    return frozenset(volume for volume in used if volume)


def volume_of(path: str) -> str | None:
    """The volume that a path is on; None if it is on none, or climbs out of it."""
    return next((volume for volume, mount in MOUNTS.items() if _is_below(path, mount)), None)


def _paths(config: TrainConfig) -> Iterator[tuple[str, str]]:
    """Options that name files or directories, but for those that the Job sets itself."""
    for dataset in config.datasets:
        if dataset.type == "local":
            where = "instance_data_dir" if config.instance_data_dir else f"data_backend_config {dataset.id}"
            yield where, str(dataset.instance_data_dir)
    if config.publish_to and config.publish_to.startswith("file:"):
        yield "publish_to", config.publish_to.removeprefix("file://")
    if config.init_lora is not None:
        yield "init_lora", str(config.init_lora)
    library = config.user_prompt_library
    if library is not None and volume_of(str(library)) is not None:
        yield "user_prompt_library", str(library)
    model = config.pretrained_model_name_or_path
    if model and (model.startswith((".", "~", "/")) or Path(model).is_dir()):
        yield "pretrained_model_name_or_path", model


def _is_below(path: str, folder: str) -> bool:
    parts = PurePosixPath(path)
    return parts.is_relative_to(folder) and ".." not in parts.parts
