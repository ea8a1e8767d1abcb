"""Priorities of requests."""

from typing import Literal, get_args

Priority = Literal["low", "normal", "high"]
PRIORITIES: tuple[Priority, ...] = get_args(Priority)
"""From the lowest to the highest."""
NORMAL: Priority = "normal"
HIGHEST: Priority = PRIORITIES[-1]


def rank_of(priority: Priority) -> int:
    """Return the place of a priority: the higher, the sooner its requests are admitted."""
    return PRIORITIES.index(priority)
