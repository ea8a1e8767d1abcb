"""The exit code of a command."""

from collections.abc import Callable

import click

from longcat.errors import LithographError


def exit_code_of(run: Callable[[], int]) -> int:
    """Run a command; report an error of ours or a lack of memory in one line, with its exit code."""
    try:
        return run()
    except (LithographError, MemoryError, RuntimeError) as error:
        from trainer.outcome import Outcome, outcome_of, problems_of

        outcome = outcome_of(error)
        if not isinstance(error, LithographError) and outcome is not Outcome.OUT_OF_MEMORY:
            raise  # a defect: print its stack trace instead of one line
        click.echo(f"error: {'. '.join(map(str, problems_of(error)))}", err=True)
        return int(outcome)
