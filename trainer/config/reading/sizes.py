"""Sizes of pictures in configurations: numbers, and ``WIDTHxHEIGHT``. No torch."""

import re
from typing import Any

from longcat.problem import Problem
from longcat.validation import ProblemValueError

_SIZE = re.compile(r"\s*([0-9]+)\s*[xX×]\s*([0-9]+)\s*")


def parse_sizes(given: Any) -> Any:
    """Parse a number, ``1024x1024,1344x768``, or a list of both to a tuple of numbers and ``WIDTHxHEIGHT``."""
    if given is None:
        return None
    parts = given.split(",") if isinstance(given, str) else given if isinstance(given, list | tuple) else [given]
    return tuple(_size(part) for part in parts)


def _size(part: Any) -> str | float:
    if isinstance(part, str) and (match := _SIZE.fullmatch(part)):
        return f"{int(match[1])}x{int(match[2])}"
    try:
        number = float(part)
    except (TypeError, ValueError, OverflowError):
        raise ProblemValueError(
            Problem(
                code="not_a_size", template="{size} is neither a number nor WIDTHxHEIGHT",
                remedy_template="give one such as 1024 or 1024x768", details={"size": str(part)},
            )
        ) from None  # fmt: skip
    if not 0 < number < float("inf"):
        raise ProblemValueError(
            Problem(
                code="size_not_positive", template="{size} is not positive",
                remedy_template="give a positive number", details={"size": str(part)},
            )
        )  # fmt: skip
    return number


def width_and_height(size: str) -> tuple[int, int]:
    """Parse ``1024x768`` to width and height in px."""
    width, _, height = size.partition("x")
    return int(width), int(height)
