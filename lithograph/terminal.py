"""Output of the commands: tables, and errors with their exit codes."""

import json
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from longcat.errors import LithographError


def echo_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows of equally many cells; the first row is the heading."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def fail(error: LithographError, exit_code: int = 1, *, as_json: bool = False) -> NoReturn:
    """Print every problem of an error on a line of its own, then exit. As JSON, standard output gets code and problems."""
    for problem in error.problems:
        click.echo(f"error: {problem}", err=True)
    if as_json:
        problems = [problem.to_json() for problem in error.problems]
        click.echo(json.dumps({"error": {"code": error.code, "problems": problems}}, ensure_ascii=False))
    sys.exit(exit_code)
