"""Checks whether an earlier attempt has finished a run."""

from contextlib import suppress

from longcat.errors import DataError
from longcat.problem import Problem
from trainer.config.options import TrainConfig
from trainer.config.settings import select
from trainer.loop.continuation import nothing_left, stopped_before
from trainer.record.run_file import read_run
from trainer.run.preparation import Prepared
from trainer.run.publish import PublishSettings


def nothing_to_do(prepared: Prepared) -> Problem | None:
    """Return the note of a run that has already made all its steps and published; None if there is work to do.

    A run that was killed after its last step still validates and publishes.
    """
    config, step, steps = prepared.config, prepared.resumed_step, prepared.steps
    stopped_early = 0 < step < steps and _has_stopped_early(config, step)
    if step == 0 or (step < steps and not stopped_early) or (step <= steps and not _is_published(config, step)):
        return None
    return stopped_before(step=step) if stopped_early else nothing_left(step=step, steps=steps)


def _has_stopped_early(config: TrainConfig, step: int) -> bool:
    """Return True if the evaluations up to a checkpoint end the run under the current patience."""
    with suppress(DataError):  # no record, or a damaged one
        card = read_run(config.output_dir).report
        return (
            card is not None
            and card.at(step) is not None
            and card.until(step, config.early_stopping_patience).is_stopped
        )
    return False


def _is_published(config: TrainConfig, step: int) -> bool:
    """Return True if an earlier attempt has finished this step or a later one, and published to the same storage."""
    with suppress(DataError):  # no record, or a damaged one
        finished = read_run(config.output_dir).finished_step
        return finished is not None and finished >= step and select(config, PublishSettings).is_done()
    return False
