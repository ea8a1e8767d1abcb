"""The error tree, and the structure that every error has.

::

    LithographError
    ├── UserError                the caller can correct it
    │   ├── PromptTooLongError
    │   ├── FlavourError         no such model, or its files are missing or damaged
    │   ├── PrecisionError       this machine or model does not support the precision
    │   ├── DeviceError          no such device, or one that does not support the setting
    │   ├── RecipeError          a picture whose recipe is missing or belongs to another model
    │   ├── ConfigError          a configuration is wrong
    │   ├── DataError            training data cannot be used
    │   ├── JobError             a training job cannot be run as requested
    │   │   ├── UnknownJobError  no job has that name
    │   │   └── JobNameTakenError  another job has that name
    │   ├── PublicationGatedError  an adapter does not meet the thresholds of its configuration
    │   └── AdapterError         an adapter is damaged, or does not fit the model
    │       ├── UnknownAdapterError  no adapter has that name or version
    │       └── NoAdapterStorageError  the server has no adapter storage
    ├── StorageError             shared storage cannot be reached, or denies access
    │   ├── DiskFullError        a local disk is full
    │   ├── HubError             the model hub cannot be reached
    │   ├── StorageTimeoutError  storage has not answered in time
    │   ├── StorageMissingError  nothing is stored under that key
    │   └── StorageConflictError the key is taken, or has changed since it was read
    ├── ClusterError             Kubernetes cannot be reached, or denies the request
    ├── DeadlineError            the time limit of a request has passed
    └── EngineError              the model failed to generate the image

An error's class has a stable ``code`` (``adapter_not_found``); an HTTP status and an exit code follow from it, in one place
each. An error holds one or more problems, each with a stable code of its own (``adapter_rank_too_high``), from which a
translation is found: see ``Problem``.
"""

import copy
import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Self

_SHOWN_CHARACTERS = 200
_DETAIL_CHARACTERS = 2000
"""A detail can be a list of names; a value is only there to be recognized."""
_LARGEST_DETAIL = 10**100


def show(value: object) -> str:
    """Format a value for a message: text and paths as they are, anything else as JSON, in at most 200 characters."""
    if isinstance(value, str | PurePath):
        return shorten(str(value), _SHOWN_CHARACTERS)
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (RecursionError, ValueError):  # nested too deeply, or a number of more than 4300 digits
        text = f"({type(value).__name__})"
    return shorten(text, _SHOWN_CHARACTERS)


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


class LithographError(Exception):
    """The root: catch it to catch everything that Lithograph raises on purpose."""

    code: str = "error"
    """Stable, one for each class that callers need to tell apart."""

    problems: tuple[Problem, ...]
    """One at least."""

    def __init__(
        self,
        code: str,
        problem: str = "",
        /,
        *,
        remedy: str = "",
        field: str = "",
        value: object = None,
        **details: object,
    ) -> None:
        """Make an error of one problem: its code, the English templates, and what fills them (see ``Problem``)."""
        super().__init__()
        self.problems = (
            Problem(code=code, template=problem, remedy_template=remedy, field=field, value=value, details=details),
        )

    @classmethod
    def of(cls, problems: Iterable[Problem]) -> Self:
        """Make an error of problems that exist already, one at least."""
        error = cls.__new__(cls)
        Exception.__init__(error)
        error.problems = tuple(problems)
        assert error.problems
        return error

    def within(self, *, field: str, value: object = None) -> Self:
        """Return the error as one of an outer input (see ``Problem.within``): ``raise error.within(...) from error``."""
        outer = copy.copy(self)
        outer.problems = tuple(problem.within(field=field, value=value) for problem in self.problems)
        return outer

    def renamed(self, field: str, name: str) -> Self:
        """Return the error with the name that the caller gave a field (see ``Problem.renamed``)."""
        outer = copy.copy(self)
        outer.problems = tuple(problem.renamed(field, name) for problem in self.problems)
        return outer

    def __str__(self) -> str:
        return ". ".join(map(str, self.problems))

    def __reduce__(self) -> tuple[Any, ...]:
        return (_restore, (type(self), self.problems, {k: v for k, v in self.__dict__.items() if k != "problems"}))


def _restore(kind: type[LithographError], problems: tuple[Problem, ...], rest: dict[str, Any]) -> LithographError:
    error = kind.of(problems)
    error.__dict__.update(rest)
    return error


class UserError(LithographError):
    """An input cannot be used; the remedy names what to give instead."""

    code = "invalid_request"


class PromptTooLongError(UserError):
    """A prompt has more tokens than the model reads."""

    def __init__(self, *, tokens: int, max_tokens: int, is_counted: bool = True) -> None:
        """``is_counted``: False if ``tokens`` is a lower bound, from the number of characters."""
        excess = tokens - max_tokens
        if is_counted:
            super().__init__(
                "prompt_too_long",
                "has {tokens} tokens; the model reads at most {max_tokens}",
                remedy="shorten it by at least {excess} tokens",
                tokens=tokens,
                max_tokens=max_tokens,
                excess=excess,
            )
        else:
            super().__init__(
                "prompt_far_too_long",
                "has at least {tokens} tokens; the model reads at most {max_tokens}",
                remedy="shorten it by at least {excess} tokens",
                tokens=tokens,
                max_tokens=max_tokens,
                excess=excess,
            )
        self.tokens = tokens
        self.max_tokens = max_tokens


class FlavourError(UserError):
    """The flavour names no model that can be loaded."""

    code = "invalid_flavour"


class PrecisionError(UserError):
    """The precision is not supported on this machine or with these settings."""

    code = "unsupported_precision"


class DeviceError(UserError):
    """The device does not exist, or does not support the setting."""

    code = "unsupported_device"


class RecipeError(UserError):
    """A picture carries no recipe, or one that this model cannot follow."""

    code = "invalid_recipe"


class ConfigError(UserError):
    """A configuration has an option that is unknown, wrong, or in conflict with another."""

    code = "invalid_config"


class DataError(UserError):
    """Training data is missing, cannot be read, or has changed."""

    code = "invalid_data"


class JobError(UserError):
    """A training job cannot be run as requested."""

    code = "invalid_job"


class UnknownJobError(JobError):
    """No training job has that name."""

    code = "job_not_found"


class JobNameTakenError(JobError):
    """Another training job has that name."""

    code = "job_name_taken"


class PublicationGatedError(UserError):
    """An adapter that does not meet the thresholds of its training's configuration."""

    code = "publication_gated"


class AdapterError(UserError):
    """An adapter is damaged, badly named, or does not fit the model."""

    code = "invalid_adapter"


class UnknownAdapterError(AdapterError):
    """No adapter has that name, or none that version."""

    code = "adapter_not_found"


class NoAdapterStorageError(AdapterError):
    """The server has no adapter storage."""

    code = "no_adapter_storage"

    def __init__(self) -> None:
        super().__init__(
            "no_adapter_storage", "no adapter storage is configured", remedy="start the server with --adapters"
        )


class StorageError(LithographError):
    """Shared storage cannot be reached, or denies access."""

    code = "storage_unreachable"


class HubError(StorageError):
    """The model hub cannot be reached; a later attempt may succeed."""

    code = "hub_unreachable"


class StorageTimeoutError(StorageError):
    """Storage has not answered in time."""


class DiskFullError(StorageError):
    """A local disk is full, or its quota is used up."""

    code = "disk_full"


class StorageMissingError(StorageError):
    """Nothing is stored under that key."""

    code = "storage_key_not_found"


class StorageConflictError(StorageError):
    """Another writer was first: the key is taken, or has changed since it was read."""

    code = "storage_conflict"


class ClusterError(LithographError):
    """Kubernetes cannot be reached, or denies the request."""

    code = "cluster_unreachable"


class DeadlineError(LithographError):
    """The time limit of a request has passed."""

    code = "timeout"

    def __init__(self) -> None:
        super().__init__(
            "timeout",
            "timeout_seconds has passed",
            remedy="allow more time, or request fewer steps or images",
        )


class EngineError(LithographError):
    """The model ran and generated no image."""

    code = "engine_error"
