"""One thing that is wrong, and what to do about it: the structure that every error has (``longcat.errors``)."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

SHOWN_CHARACTERS = 200
"""Most characters of a field or a value in a message."""
_DETAIL_CHARACTERS = 2000
"""A detail can be a list of names; a value is only there to be recognized."""
_LARGEST_DETAIL = 10**100


def show(value: object) -> str:
    """Format a value for a message: text and paths as they are, anything else as JSON, in at most 200 characters.

    Of bytes, such as a file's, only the number is shown.
    """
    if isinstance(value, str | PurePath):
        return shorten(str(value), SHOWN_CHARACTERS)
    try:
        text = json.dumps(value, ensure_ascii=False, default=_shown)
    except (RecursionError, ValueError):  # nested too deeply, or a number of more than 4300 digits
        text = f"({type(value).__name__})"
    return shorten(text, SHOWN_CHARACTERS)


def _shown(value: object) -> str:
    return f"({len(value)} bytes)" if isinstance(value, bytes) else str(value)


def shorten(text: str, most: int) -> str:
    """Return text in at most ``most`` characters: longer text loses its middle, so that a path keeps its file name.

    Shortened text is not shortened again: problems cross processes in that form. A lone surrogate, which no stream can
    encode, is escaped.
    """
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    if len(text) <= most:
        return text
    omission = f"… ({len(text)} characters) …"
    kept = most - len(omission)
    return text[: kept - kept // 2] + omission + text[-(kept // 2) :]


def reason_of(error: BaseException) -> str:
    """Return the reason of another library's error as one line: without a system error's number and path."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return next(iter(text.strip().splitlines()), "") or type(error).__name__


def _bounded(detail: object) -> object:
    match detail:
        case str():
            return shorten(detail, _DETAIL_CHARACTERS)
        case int() if abs(detail) > _LARGEST_DETAIL:
            return show(detail)
        case list() | tuple() | dict():
            return shorten(str(detail), _DETAIL_CHARACTERS)
    return detail


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong, and what to do about it.

    ``problem`` and ``remedy`` are English templates, filled from ``details``, ``field`` and ``value``; they are literals in
    the source, and the same code always has the same two. A translation is a pair of templates with the same placeholders.
    """

    code: str
    """Stable, in snake case: ``adapter_rank_too_high``."""
    template: str
    """The problem, in English: ``rank {rank} exceeds the {max_rank} that are served``."""
    remedy_template: str = ""
    """The remedy, in English, beginning with a verb: ``start the server with --adapter-rank {rank}``."""
    field: str = ""
    """The input that is wrong: a request's field, an option, ``file`` ..."""
    value: object = None
    """The value given; None where there was none."""
    details: Mapping[str, object] = dataclasses.field(default_factory=dict)
    """Values of the templates' placeholders: text, numbers, or another ``Problem`` that caused this one."""

    def __post_init__(self) -> None:
        """Shorten the name of the field and the details: a request decides how long they are."""
        object.__setattr__(self, "field", show(self.field))
        object.__setattr__(self, "details", {name: _bounded(detail) for name, detail in self.details.items()})

    @property
    def problem(self) -> str:
        """The problem as an English clause, without field and value."""
        return self.fill(self.template)

    @property
    def remedy(self) -> str:
        """The remedy as an English clause; empty where there is none."""
        return self.fill(self.remedy_template)

    @property
    def subject(self) -> str:
        """The field and its value, as in ``steps = 0``; empty where the problem is about no input."""
        shown = show(self.value)
        if not shown.strip():
            shown = json.dumps(shown)
        return show(self.field) if self.value is None else f"{show(self.field)} = {shown}"

    def fill(self, template: str) -> str:
        """Fill a template's placeholders; it may be a translation of this problem's own."""
        return template.format_map({"field": self.field, "value": show(self.value), **self.details})

    def within(self, *, field: str, value: object = None) -> "Problem":
        """Return the problem as one of an outer input; a field that it names already is kept behind a dot."""
        inner = f"{field}.{self.field}" if self.field else field
        return dataclasses.replace(self, field=inner, value=self.value if self.field else value)

    def renamed(self, field: str, name: str) -> "Problem":
        """Return the problem with another name for a field, also where it is the part before a dot."""
        head, rest = self.field[: len(field)], self.field[len(field) :]
        return dataclasses.replace(self, field=name + rest) if head == field and rest[:1] in ("", ".") else self

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object from which ``from_json`` makes an equal problem; other processes translate it."""
        details = {name: d.to_json() if isinstance(d, Problem) else d for name, d in self.details.items()}
        value = None if self.value is None else show(self.value)
        return {
            "code": self.code, "template": self.template, "remedy_template": self.remedy_template,
            "field": self.field, "value": value, "details": details,
        }  # fmt: skip

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Problem":
        """Make a problem from what ``to_json`` returned."""
        details = {
            name: cls.from_json(d) if isinstance(d, Mapping) and "template" in d else d
            for name, d in fields["details"].items()
        }
        return cls(**{**fields, "details": details})

    @property
    def clause(self) -> str:
        """Problem and remedy in English, without field and value."""
        return f"{self.problem}; {remedy}" if (remedy := self.remedy) else self.problem

    def __str__(self) -> str:
        return f"{subject}: {self.clause}" if (subject := self.subject) else self.clause
