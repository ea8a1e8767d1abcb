"""References to adapters: ``ink``, the latest version, and ``ink@3``. No torch."""

import re
from dataclasses import dataclass

from longcat.errors import AdapterError

NAME = r"(?P<name>[a-z0-9][a-z0-9._-]{0,62})"
VERSION = r"(?P<version>[1-9][0-9]{0,8})"
_REFERENCE = re.compile(rf"{NAME}(?:@{VERSION})?")
_BASE_NAMES = frozenset({"embedded", "final", "dev", "edit", "edit-turbo"})
"""Names of the models that have one; importing ``longcat.model.flavour`` for them would bring the hub's client."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """An adapter as a request names it; no version means the latest."""

    name: str
    version: int | None


def parse_reference(text: str, *, field: str = "adapter") -> Reference:
    """Parse ``ink`` or ``ink@3``. Raises ``AdapterError`` about ``field``."""
    match = _REFERENCE.fullmatch(text)
    if match is None:
        raise AdapterError(
            "adapter_name_invalid",
            "not the name of an adapter",
            remedy="use lower-case letters, digits, '.', '_' and '-', with or without a version: ink, or ink@3",
            field=field,
            value=text,
        )
    return Reference(name=match["name"], version=int(match["version"]) if match["version"] else None)


def parse_name(text: str, *, field: str = "adapter") -> str:
    """Return an adapter's name. Raises ``AdapterError`` about ``field``, also if the text names a version."""
    reference = parse_reference(text, field=field)
    if reference.version is not None:
        raise AdapterError(
            "adapter_version_given",
            "names a version",
            remedy="give the name alone: {name}",
            field=field,
            value=text,
            name=reference.name,
        )
    return reference.name


def parse_new_name(text: str, *, base: str | None = None, field: str = "adapter") -> str:
    """Return the name of an adapter to publish. Raises ``AdapterError``, also for the name of a base model.

    ``base``: the model that it is for. OpenAI's API takes base models and adapters in one field.
    """
    name = parse_name(text, field=field)
    if name == base or name in _BASE_NAMES:
        raise AdapterError(
            "adapter_name_of_model",
            "the name of a base model, from which requests could not tell the adapter",
            remedy="give another name",
            field=field,
            value=name,
        )
    return name
