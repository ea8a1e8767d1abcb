"""What can go wrong on a page, said in the reader's language: a key of the catalogue and what to fill in."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from longcat.errors import LithographError


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One field of a form that is wrong."""

    field: str
    """Its name in the form."""
    key: str
    """Of the text that says what is wrong and what to give instead."""
    values: dict[str, Any] = dataclasses.field(default_factory=dict)
    """For the text; ``value`` is what was given."""
    details: tuple[str, ...] = ()
    """Sentences of whoever refused it."""


class PageError(LithographError):
    """Something that a page cannot do, and what to do about it."""

    def __init__(
        self, key: str, /, *, status: int = 422, detail: str = "", problems: tuple[Problem, ...] = (), **values: Any
    ) -> None:
        super().__init__(f"{key} {values}" if values else key)
        self.key = key
        """Of the text."""
        self.status = status
        """HTTP's."""
        self.detail = detail
        """The words of whoever refused it, untranslated: the service's, or a program's."""
        self.problems = problems
        self.values = values
