"""A component's config.json: reading it, and its counts. No torch."""

import json
from pathlib import Path
from typing import Any

from longcat.errors import FlavourError


def read_config(folder: Path, part: str) -> dict[str, Any]:
    """Read the config.json of a component. Raises ``FlavourError`` if it is missing or no JSON object."""
    path = folder / part / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FlavourError(
            "component_config_unreadable",
            "cannot be read: {cause}",
            remedy="give a model's whole directory",
            field="file",
            value=str(path),
            cause=str(error),
        ) from error
    if not isinstance(config, dict):
        raise FlavourError(
            "component_config_not_object",
            "not a JSON object",
            remedy="give a model's whole directory",
            field="file",
            value=str(path),
        )
    return config


def count_of(folder: Path, config: dict[str, Any], key: str, default: int) -> int:
    """Return an entry that is a count. Raises ``FlavourError`` if it is something else."""
    value = config.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise FlavourError(
            "component_config_not_a_count",
            "not a whole number, in a config.json of {folder}",
            remedy="give a model's whole directory",
            field=key,
            value=value,
            folder=str(folder),
        )
    return value
