"""Values by patterns of modules' names, as PEFT's ``rank_pattern`` and ``alpha_pattern`` give them. No torch.

PEFT 0.21 (``utils/other.py``, ``get_pattern_key``) matches each pattern as a regular expression against the end of a name,
after a dot or from its start. A file is not trusted, and Python's expressions can take exponential time: here a pattern
is a name, which is compared, or a simple expression, whose time is bounded. Programs write names.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from longcat.errors import AdapterError

_Value = TypeVar("_Value")

_NAME = re.compile(r"\w(?:[\w.-]*\w)?")
_ONE = r"(?:[\w-]|\\[.dw]|\.|\[[\w-]+\])"
_CHOICE = r"\((?:\?:)?[\w.|\\-]+\)"
_SIMPLE = re.compile(rf"\^?(?:{_ONE}[?*+]?+|{_CHOICE}\??|\|)*+\$?")
"""Characters, classes and choices between names. No group is repeated, so that time grows with a power of the length."""
_MAX_REPEATS = 2
_MAX_LENGTH = 200
_MAX_EXPRESSIONS = 64


class Patterns(Generic[_Value]):
    """Values by pattern. Of several patterns that match a name, the first counts."""

    def __init__(self, values: Mapping[str, _Value]) -> None:
        """Raises ``AdapterError`` for a pattern that is no regular expression, or none whose time is bounded."""
        self._values = tuple(values.values())
        self._names = {pattern: place for place, pattern in enumerate(values) if _NAME.fullmatch(pattern)}
        others = [(place, pattern) for place, pattern in enumerate(values) if pattern not in self._names]
        self._expressions = [(place, _compiled(pattern)) for place, pattern in others[:_MAX_EXPRESSIONS]]
        if len(others) > _MAX_EXPRESSIONS:
            raise _unbounded(others[_MAX_EXPRESSIONS][1])

    def get(self, module: str, default: _Value) -> _Value:
        """Return the value of a module's name."""
        places = [self._names[ending] for ending in _endings(module) if ending in self._names]
        places += [place for place, expression in self._expressions if expression.match(module)]
        return self._values[min(places)] if places else default


def _endings(module: str) -> Iterator[str]:
    """Yield the name, and what is after each of its dots."""
    parts = module.split(".")
    return (".".join(parts[first:]) for first in range(len(parts)))


def _compiled(pattern: str) -> re.Pattern[str]:
    if len(pattern) > _MAX_LENGTH:
        raise _unbounded(pattern)
    try:
        re.compile(pattern)
    except (re.error, OverflowError) as error:
        raise AdapterError(
            "peft_pattern_invalid",
            "its configuration has a pattern {pattern!r} that is not a regular expression: {reason}",
            remedy="save the adapter again",
            pattern=pattern,
            reason=str(error),
        ) from error
    repeats = sum(pattern.count(sign) for sign in "*+")
    if repeats > _MAX_REPEATS or not _SIMPLE.fullmatch(pattern):
        raise _unbounded(pattern)
    return re.compile(rf"(.*\.)?({pattern})$")


def _unbounded(pattern: str) -> AdapterError:
    return AdapterError(
        "peft_pattern_unbounded",
        "its configuration has a pattern {pattern!r} that could take too long to match",
        remedy="write the names of the modules, or simpler patterns, into its configuration",
        pattern=pattern[:_MAX_LENGTH],
    )
