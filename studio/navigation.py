"""The pages that the top of every page links to."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Destination:
    """A page that can be gone to."""

    path: str
    key: str
    """Of its name, and of its icon in ``icons.svg``."""


NAVIGATION: Sequence[Destination] = (
    Destination(path="/generate", key="generate"),
    Destination(path="/datasets", key="datasets"),
    Destination(path="/train", key="train"),
    Destination(path="/jobs", key="jobs"),
    Destination(path="/adapters", key="adapters"),
)
