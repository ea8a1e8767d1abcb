"""The pages that the top of every page links to."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class NavigationEntry:
    """A page that can be gone to."""

    path: str
    key: str
    """Of its name, and of its icon in ``icons.svg``."""


NAVIGATION: Sequence[NavigationEntry] = (
    NavigationEntry(path="/generate", key="generate"),
    NavigationEntry(path="/datasets", key="datasets"),
    NavigationEntry(path="/train", key="train"),
    NavigationEntry(path="/jobs", key="jobs"),
    NavigationEntry(path="/adapters", key="adapters"),
)
