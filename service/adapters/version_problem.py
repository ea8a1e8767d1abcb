"""The problem for which a version is not served, distinguished from a failure of the whole storage."""

import logging
from dataclasses import dataclass
from typing import Literal

from longcat.errors import AdapterError, DiskFullError, StorageError, StorageMissingError
from longcat.problem import Problem, show
from longcat.storage.interface import Storage

log = logging.getLogger("lithograph")


@dataclass(frozen=True, kw_only=True)
class VersionProblem:
    """The problem for which a version is not served."""

    problem: Problem
    kind: Literal["unfit", "incomplete", "unreadable"]
    """The metric's label: wrong content, missing content, or unreadable content."""

    @property
    def is_retried(self) -> bool:
        """Return True if the next poll tries again: wrong content stays wrong until it is overwritten."""
        return self.kind != "unfit"

    def is_same_as(self, other: Problem) -> bool:
        """Return True if a problem is this one; the wording of a cause may differ from attempt to attempt."""
        return _codes(self.problem) == _codes(other)


def version_problem_of(error: Exception, name: str, version: int | None, storage: Storage) -> VersionProblem:
    """Return the problem of a version. Raises ``StorageError`` if the whole storage cannot be read."""
    reference = name if version is None else f"{name}@{version}"
    if isinstance(error, AdapterError):
        return VersionProblem(problem=error.problems[0], kind="unfit")
    if not isinstance(error, StorageError):
        log.error("adapter %s failed", reference, exc_info=error)
        problem = Problem(
            code="adapter_failed",
            template="cannot be processed: {reason}",
            remedy_template="publish it again",
            field="adapter",
            value=reference,
            details={"reason": show(f"{type(error).__name__}: {error}")},
        )
        return VersionProblem(problem=problem, kind="unfit")
    if not isinstance(error, DiskFullError):
        storage.probe()
    cause = error.problems[0]
    if isinstance(error, StorageMissingError):
        problem = Problem(
            code="adapter_incomplete",
            template="version {version} is incomplete in storage: {cause}",
            field="adapter",
            value=name,
            details={"version": "latest" if version is None else version, "cause": cause},
        )
        return VersionProblem(problem=problem, kind="incomplete")
    problem = Problem(
        code="adapter_unreadable",
        template="cannot be read: {cause}",
        field="adapter",
        value=reference,
        details={"cause": cause},
    )
    return VersionProblem(problem=problem, kind="unreadable")


def _codes(problem: Problem) -> tuple[object, ...]:
    cause = problem.details.get("cause")
    return (problem.code, problem.value, *(_codes(cause) if isinstance(cause, Problem) else ()))
