"""Exit codes of errors, and the problems that records keep of them."""

import json
from collections.abc import Iterator

import pytest
import torch

from longcat.errors import ConfigError, DataError, LithographError, StorageError
from longcat.problem import Problem
from trainer.record.outcome import MEANINGS, OUTCOMES, Outcome, outcome_of, problems_of


def tree(kind: type[LithographError] = LithographError) -> Iterator[type[LithographError]]:
    yield kind
    for child in kind.__subclasses__():
        if child.__module__ == "longcat.errors":
            yield from tree(child)


def test_every_class_of_errors_has_an_outcome() -> None:
    assert {kind.code for kind in tree()} == OUTCOMES.keys()


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ConfigError("x", "wrong"), Outcome.BAD_CONFIG),
        (DataError("x", "wrong"), Outcome.BAD_DATA),
        (StorageError("x", "wrong"), Outcome.STORAGE_DOWN),
        (MemoryError(), Outcome.OUT_OF_MEMORY),
        (torch.OutOfMemoryError("CUDA out of memory"), Outcome.OUT_OF_MEMORY),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), Outcome.OUT_OF_MEMORY),
        (RuntimeError("shapes differ"), Outcome.UNKNOWN),
    ],
)
def test_an_error_has_an_outcome_and_problems_that_cross_processes(error: Exception, outcome: Outcome) -> None:
    assert outcome_of(error) is outcome
    for problem in problems_of(error):
        assert Problem.from_json(json.loads(json.dumps(problem.to_json()))) == problem


def test_every_outcome_has_a_meaning() -> None:
    assert set(MEANINGS) == set(Outcome)


def test_the_problems_of_an_unforeseen_error_name_it() -> None:
    assert [str(problem) for problem in problems_of(ValueError("no"))] == ["ValueError: no"]
