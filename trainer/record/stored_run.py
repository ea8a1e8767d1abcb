"""The files of a run: ``run.json`` and ``metrics.jsonl``. No torch."""

import math
import os
import socket
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trainer.record.averages import Averages, StepReport
from trainer.record.run_file import RUN_FILE, MetricsFile, MetricsLine, RunRecord, read_run, write_run

_FLUSH_STEPS = 50
_FLUSH_SECONDS = 1.0


class StoredRun:
    """The record of a run and its lines of metrics. Rank 0 alone writes them."""

    def __init__(
        self, output_dir: Path, *, run_id: str, total_steps: int, config: Mapping[str, Any], writes: bool
    ) -> None:
        now = datetime.now(UTC)
        self.record = RunRecord(
            run_id=run_id,
            pid=os.getpid(),
            hostname=socket.gethostname(),
            started=now,
            updated=now,
            code_version=version("lithograph"),
            total_steps=total_steps,
            config=dict(config),
        )
        self._output_dir = output_dir
        self._writes = writes
        self._averages = Averages(total_steps=total_steps)
        self._previous: RunRecord | None = None
        self._lines: MetricsFile | None = None
        self._flush_at = -math.inf

    @property
    def has_begun(self) -> bool:
        """True once the step is known after which the run continues."""
        return self._lines is not None

    @property
    def is_due(self) -> bool:
        """True if the files were last written a second ago or earlier."""
        return time.monotonic() >= self._flush_at

    def continue_previous(self) -> None:
        """Keep the results of an earlier process of this run, in case that this one is killed before training begins.

        Raises ``DataError`` if the record in the output directory is damaged.
        """
        if not (self._output_dir / RUN_FILE).exists():
            return
        self._previous = before = read_run(self._output_dir)
        if before.run_id == self.record.run_id:
            kept = ("step", "dataset", "checkpoints", "validations", "report", "published", "finished_step")
            self.update(**{name: getattr(before, name) for name in kept})

    def begin(self, step: int) -> None:
        """Open the lines after a step, 0 for a new run. Records of later steps are removed."""
        self._lines = MetricsFile(self._output_dir, after_step=step)
        finished = self.record.finished_step
        is_before = finished is not None and finished <= step
        self.update(start_step=step, step=step, published=None, finished_step=finished if is_before else None)
        before = self._previous if step else None
        self.update(
            checkpoints=tuple(made for made in before.checkpoints if made.step <= step) if before else (),
            validations=tuple(made for made in before.validations if made.step <= step) if before else (),
            report=self.record.report if step else None,
        )
        self._flush_at = -math.inf  # the first step is written at once

    def add(self, report: StepReport, *, at: float) -> dict[str, float]:
        """Add a step's line, made ``at`` this time; return the metrics by their names in ``run.json``."""
        assert self._lines is not None, "only the process that writes reports steps"
        self._averages.add(report)
        buffered = self._lines.append(
            MetricsLine(
                step=report.step,
                loss=report.loss,
                learning_rate=report.learning_rate,
                gradient_norm=report.gradient_norm,
                step_seconds=report.step_seconds,
                images_per_second=report.images / report.step_seconds,
                time=at,
            )
        )
        if buffered >= _FLUSH_STEPS:
            self._flush_at = -math.inf
        return self._averages.values()

    def update(self, **changes: Any) -> None:
        """Change fields of the record."""
        self.record = self.record.model_copy(update=changes)

    def store(self, *, durable: bool = True) -> None:
        """Write the record and the buffered lines, in rank 0. The record has the last step's metrics from here on."""
        if not self._writes:
            return
        self.update_metrics()
        if self.record.dataset is not None:
            self.update(epoch=self.record.step / self.record.dataset.steps_per_epoch)
        self.update(updated=datetime.now(UTC))
        if self._lines is not None:
            self._lines.flush()
        write_run(self._output_dir, self.record, durable=durable)
        self._flush_at = time.monotonic() + _FLUSH_SECONDS

    def update_metrics(self) -> None:
        """Put the last step's metrics into the record."""
        self.update(**self._averages.values())

    def close(self) -> None:
        """Close the file of metrics."""
        if self._lines is not None:
            self._lines.close()
