"""Options from a command line or the environment, read by the type of each option. No torch."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from longcat.errors import ConfigError
from trainer.config.options import TrainConfig


def parse_assignments(arguments: Iterable[str]) -> dict[str, Any]:
    """Parse ``--learning_rate 1e-4``, ``--learning_rate=1e-4``, ``learning_rate=1e-4`` and ``--gradient_checkpointing``.

    An option that takes text gets the value as it is, quotes included; ``null`` is its default where it has no value by
    default. A list, number or switch is read as JSON. Raises ``ConfigError`` for an argument that is not an assignment.
    """
    options: dict[str, Any] = {}
    pending: str | None = None
    for argument in arguments:
        is_flag = argument.startswith("--")
        key, equals, text = argument.removeprefix("--").partition("=")
        if pending is not None and not is_flag:
            options[pending], pending = parse_value(pending, argument), None
            continue
        if not is_flag and not equals:
            raise ConfigError(
                "not_an_assignment",
                "not an assignment",
                remedy="give --key value or key=value",
                field="argument",
                value=argument,
            )
        key = key.replace("-", "_")
        pending = None if equals else key
        options[key] = parse_value(key, text) if equals else True
    return options


def parse_value(name: str, text: str) -> Any:
    """Return the value that a text gives to an option, as JSON for options that are unknown."""
    types = set(_types_of(name))
    if tuple in types:
        parsed = _json_or(text)
        return parsed if isinstance(parsed, list | dict | NoneType) else text
    if types & {str, Path}:
        return None if text == "null" and NoneType in types else text
    return _json_or(text)


def _types_of(name: str) -> Iterator[Any]:
    for field_name, field in TrainConfig.model_fields.items():
        if name in (field_name, *getattr(field.validation_alias, "choices", ())):
            yield from _leaves(field.annotation)


def _leaves(annotation: Any) -> Iterator[Any]:
    """Yield the types of a union, without their constraints; choices are text."""
    origin = get_origin(annotation)
    if origin is tuple:
        yield tuple
    elif origin is Literal:
        yield str
    elif hasattr(annotation, "__metadata__"):
        yield from _leaves(get_args(annotation)[0])
    elif args := get_args(annotation):
        for member in args:
            yield from _leaves(member)
    else:
        yield annotation


def _json_or(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
