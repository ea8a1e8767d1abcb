"""A group of checks that end in every way."""

import importlib
import os

from benchmarks.gpu_check.checks import Check, Skipped
from benchmarks.gpu_check.kit import Kit


def run(kit: Kit, argument: str) -> None:
    if argument == "crash":
        kit.checks.run("crashes", lambda _: os._exit(3))
    kit.checks.run("raises", _raise)
    kit.checks.run("requires", _require)
    kit.checks.run("cannot run", _skip)
    kit.checks.run("lacks a package", lambda _: importlib.import_module("not_a_package"))
    kit.checks.run("passes", lambda check: check.note(product_ms=12.3456))


def _raise(check: Check) -> None:
    check.note(before_s=1)
    raise ValueError("broken")


def _require(check: Check) -> None:
    check.require(False, "5 is more than 4")


def _skip(check: Check) -> None:
    raise Skipped("there is no such device")
