"""The error tree.

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
translation is found: see ``longcat.problem``.
"""

import copy
from collections.abc import Iterable
from typing import Any, Self

from longcat.problem import Problem


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
