"""The navigation at the top of every page."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class NavigationEntry:
    """A page in the navigation."""

    path: str
    key: str
    """Key of its name in the locale, and of its icon in ``icons.svg``."""


NAVIGATION: Sequence[NavigationEntry] = (
    NavigationEntry(path="/generate", key="generate"),
    NavigationEntry(path="/edit", key="edit"),
    NavigationEntry(path="/datasets", key="datasets"),
    NavigationEntry(path="/train", key="train"),
    NavigationEntry(path="/jobs", key="jobs"),
    NavigationEntry(path="/adapters", key="adapters"),
)
