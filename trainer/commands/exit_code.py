"""The exit code of a command."""

import json
from collections.abc import Callable

import click

from longcat.errors import LithographError


def exit_code_of(run: Callable[[], int], *, as_json: bool = False) -> int:
    """Run a command; report an error of ours or a lack of memory in one line, with its exit code.

    As JSON, standard output gets the error's code and problems too, as of ``lithograph adapters``.
    """
    try:
        return run()
    except (LithographError, MemoryError, RuntimeError) as error:
        from trainer.record.outcome import Outcome, outcome_of, problems_of

        outcome = outcome_of(error)
        if not isinstance(error, LithographError) and outcome is not Outcome.OUT_OF_MEMORY:
            raise  # a defect: print its stack trace instead of one line
        problems = problems_of(error)
        click.echo(f"error: {'. '.join(map(str, problems))}", err=True)
        if as_json:
            code = error.code if isinstance(error, LithographError) else "out_of_memory"
            shown = {"code": code, "problems": [problem.to_json() for problem in problems]}
            click.echo(json.dumps({"error": shown}, ensure_ascii=True))
        return int(outcome)
