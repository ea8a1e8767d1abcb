"""The share of a server that a key has, and its limits."""

from dataclasses import dataclass

from service.wire.schema import HIGHEST, NORMAL, Priority, rank_of


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """The limits of one key's use of the device."""

    share: float = 1.0
    """Part of the device's pixel-steps while other keys wait, relative to their shares."""
    priority: Priority = HIGHEST
    """The highest that its requests may have."""
    requests: int | None = None
    """Most requests under way at a time; None: no limit."""
    pixel_steps_per_minute: int | None = None
    """Most pixel-steps (``service.access.cost``) that are admitted a minute; None: no limit."""

    @property
    def default_priority(self) -> Priority:
        """Return the priority of requests that ask for none: normal, or the highest allowed if that is lower."""
        return min(NORMAL, self.priority, key=rank_of)


UNLIMITED = Allowance()
"""The allowance of every caller of a server without keys, who may use all of it."""
