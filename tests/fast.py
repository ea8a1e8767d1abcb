"""The marker ``fast`` for tests that start no other program and do not compute for seconds.

It is derived from the tests' code, without a hand-kept list; tests that compute for seconds are marked ``heavy``.

A test is slow if its code, or that of a fixture or of a function of these tests that it uses, reaches one of ``_STARTERS``:
servers, trainings, browsers, containers and commands all begin there.
"""

import multiprocessing
import subprocess
import types
from collections.abc import Iterator

import playwright.sync_api
import pytest

from studio.jobs.executor import LocalExecutor

_STARTERS = (subprocess, multiprocessing, playwright.sync_api.sync_playwright)
_OURS = ("tests.", "recipes.", "loadtest.")
"""Packages whose functions are followed."""
_STARTING_NAMES = {LocalExecutor.__name__, "_dynamo"}
"""Names that start other programs inside the product and torch: the studio's trainings, and the compiler."""


def is_fast(item: pytest.Item) -> bool:
    """Return True for a fast test. The parameter ``s3`` stands for a real S3 server."""
    if not isinstance(item, pytest.Function) or item.get_closest_marker("heavy"):
        return False
    if "callspec" in vars(item) and "s3" in item.callspec.params.values():
        return False
    fixtures = [one.func for found in item._fixtureinfo.name2fixturedefs.values() for one in found]  # no public name
    seen: set[object] = set()
    return not any(_reaches_starter(each, seen) for each in (item.function, *fixtures))


def _reaches_starter(value: object, seen: set[object]) -> bool:
    if any(value is starter for starter in _STARTERS):
        return True
    if id(value) in seen:
        return False
    seen.add(id(value))
    if isinstance(value, type) and value.__module__.startswith(_OURS):
        return any(_reaches_starter(each, seen) for each in vars(value).values())
    function = getattr(value, "__wrapped__", value)  # of context managers and fixtures
    if not isinstance(function, types.FunctionType) or not function.__module__.startswith(_OURS):
        return False
    names = set(_names(function.__code__))
    return bool(names & _STARTING_NAMES) or any(
        _reaches_starter(function.__globals__[name], seen) for name in names & function.__globals__.keys()
    )


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
