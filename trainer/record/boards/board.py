"""The places that show curves and pictures of a run: TensorBoard's files, MLflow, Weights & Biases. No torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from trainer.record.boards.tensorboard import TensorBoardWriter
from trainer.record.boards.tracked_run import RUNS
from trainer.record.boards.trackers import Tracker


class Board(Protocol):
    """A receiver of curves and pictures. No method raises because a server cannot be reached."""

    def curves(self, step: int, values: Mapping[str, float]) -> None:
        """Add one point to each curve."""

    def pictures(self, step: int, images: Sequence[str]) -> None:
        """Add pictures. ``images`` are files relative to output_dir."""

    def close(self, state: str) -> None:
        """End the run as finished, preempted or failed."""


def open_boards(
    names: Sequence[str],
    output_dir: Path,
    *,
    project: str,
    run_name: str,
    config: Mapping[str, Any],
    after_step: int,
) -> tuple[Board, ...]:
    """Open the boards of ``report_to`` for a run that continues after a step.

    A run that resumes, even from no checkpoint, is the same run in each tracker.
    """
    resumes = after_step > 0 or config.get("resume_from_checkpoint") is not None
    return tuple(
        TensorBoardWriter(output_dir, after_step=after_step)
        if name == "tensorboard"
        else Tracker(name, RUNS[name], output_dir, project=project, run_name=run_name, config=config, resumes=resumes)
        for name in names
    )
