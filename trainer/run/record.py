"""The record of a run, and of an error before it is open."""

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from longcat.errors import DataError
from trainer.config.options import TrainConfig
from trainer.config.settings import public_options
from trainer.record.outcome import outcome_of, problems_of
from trainer.record.progress import RunProgress
from trainer.record.run_file import RUN_FILE, make_output_dir, read_run


@contextmanager
def errors_recorded(config: TrainConfig, *, writes: bool = True) -> Iterator[None]:
    """Record an error that is raised before the run's own record is open."""
    try:
        yield
    except Exception as error:  # any error belongs in the record; it is raised again
        if writes:
            make_output_dir(config.output_dir)
        with open_progress(config, 0, show_bar=False, writes=writes) as progress:
            progress.finish("failed", problems_of(error), int(outcome_of(error)))
        raise


def open_progress(config: TrainConfig, steps: int, *, show_bar: bool, writes: bool) -> RunProgress:
    """Return the progress of a run, which opens its record when its context is entered; ``writes`` in rank 0 alone."""
    return RunProgress(
        config.output_dir,
        run_id=config.tracker_run_name or _run_id(config),
        config=public_options(config),
        total_steps=steps,
        report_to=config.report_to,
        project=config.tracker_project_name,
        metrics_port=config.metrics_port,
        pushgateway_url=config.pushgateway_url,
        show_bar=show_bar,
        writes=writes,
    )


def _run_id(config: TrainConfig) -> str:
    """Return the id of the run: a resumed run keeps its own, because a Pushgateway keeps a group for every id."""
    if config.resume_from_checkpoint is not None and (config.output_dir / RUN_FILE).exists():
        with suppress(DataError):  # a damaged record is replaced by a new one
            return read_run(config.output_dir).run_id
    return f"{config.adapter_name or 'run'}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
