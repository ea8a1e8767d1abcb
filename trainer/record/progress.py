"""The progress of a run, reported to bar or log, ``run.json``, ``metrics.jsonl``, Prometheus and trackers. No torch.

One object receives every event. Files are written at most once a second or every 50 steps, and after every rare event.
"""

import logging
import math
import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from longcat.errors import DataError
from longcat.logs import log_event
from longcat.problem import Problem
from trainer.outcome import problems_of
from trainer.record.averages import Averages, StepReport
from trainer.record.bar import Bar, open_bar
from trainer.record.boards import Board, open_boards
from trainer.record.metrics import Endpoint, Pusher, TrainerMetrics
from trainer.record.report_card import EvaluationRecord, NearestRecord, ReportCard
from trainer.record.run_file import (
    RUN_FILE,
    CacheRecord,
    CheckpointRecord,
    DatasetRecord,
    MetricsFile,
    MetricsLine,
    Phase,
    RunRecord,
    ValidationRecord,
    read_run,
    write_run,
)

__all__ = ["RunProgress", "StepReport"]

_FLUSH_STEPS = 50
_FLUSH_SECONDS = 1.0
_LOG_SECONDS = 30.0
_CURVES = ("loss", "learning_rate", "gradient_norm", "images_per_second")

_logger = logging.getLogger("lithograph.trainer")

_NO_RESULT = Problem(
    code="run_without_result", template="the run ended without a result", remedy_template="see the log"
)


class RunProgress:
    """A context manager that closes what it opened. A run that ends without ``finish`` is recorded as failed."""

    def __init__(
        self,
        output_dir: Path,
        *,
        run_id: str,
        config: Mapping[str, Any],
        total_steps: int,
        report_to: Sequence[str] = (),
        project: str = "lithograph",
        metrics_port: int | None,
        pushgateway_url: str | None,
        show_bar: bool,
        writes: bool = True,
    ) -> None:
        """Describe the run; entering the context starts the record.

        A bar is shown on a terminal only. ``writes`` is True in rank 0 alone: the other processes write and log nothing.
        """
        now = datetime.now(UTC)
        self._record = RunRecord(
            run_id=run_id,
            pid=os.getpid(),
            hostname=socket.gethostname(),
            started=now,
            updated=now,
            code_version=version("lithograph"),
            total_steps=total_steps,
            config=dict(config),
        )
        self._started = time.monotonic()
        self._output_dir = output_dir
        self._report_to = report_to
        self._project = project
        self._metrics_port = metrics_port
        self._pushgateway_url = pushgateway_url
        self._shows_bar = show_bar and sys.stderr.isatty()
        self._writes = writes
        self._metrics = TrainerMetrics(total_steps=total_steps)
        self._averages = Averages(total_steps=total_steps)
        self._previous: RunRecord | None = None
        self._stack = ExitStack()
        self._lines: MetricsFile | None = None
        self._boards: tuple[Board, ...] = ()
        self._bar: Bar | None = None
        self._flush_at = self._log_at = -math.inf

    def __enter__(self) -> Self:
        with self._stack:
            if self._writes:
                self._open()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if self._record.ended is None:
                self.finish("failed", problems_of(error) if error else (_NO_RESULT,), None)

    def resumed(self, step: int) -> None:
        """Continue after this step, 0 for a new run. Records of later steps are removed."""
        self._begin(step)
        self._store()

    def dataset(self, *, pictures: int, dropped: int, steps_per_epoch: float) -> None:
        """Record the training data."""
        self._update(dataset=DatasetRecord(pictures=pictures, dropped=dropped, steps_per_epoch=steps_per_epoch))
        self._log("dataset", pictures=pictures, dropped=dropped, steps_per_epoch=steps_per_epoch)
        self._store()

    def phase(self, name: Phase) -> None:
        """Begin a phase."""
        self._update(phase=name)
        self._metrics.phase(name)
        self._log("phase", name=name)
        self._store()

    def cache(self, kind: str, done: int, total: int, hits: int) -> None:
        """Record the progress of caching one kind of entry. ``hits`` of ``done`` existed before."""
        before = self._record.cache.get(kind) or CacheRecord(done=0, total=total, hits=0)
        self._metrics.cached(kind, hits=hits - before.hits, made=done - hits - (before.done - before.hits))
        self._update(cache=self._record.cache | {kind: CacheRecord(done=done, total=total, hits=hits)})
        if self._bar:
            self._bar.show(kind, done, total)
        if done == total or time.monotonic() >= self._log_at:
            self._log("cached", kind=kind, done=done, total=total, hits=hits)
        if done == total or time.monotonic() >= self._flush_at:
            self._store(durable=False)

    def denoising(self, done: int, total: int, picture: str) -> None:
        """Record the progress of a validation in denoising steps, and the picture under way."""
        if self._bar:
            self._bar.show("validating", done, total, picture)
        elif time.monotonic() >= self._log_at:
            self._log("denoising", done=done, total=total, picture=picture)

    def step(self, report: StepReport) -> None:
        """Record an optimizer step."""
        total = self._record.total_steps
        self._begin(report.step - 1)
        assert self._lines is not None, "only the process that writes reports steps"
        self._averages.add(report)
        values, now = self._averages.values(), time.time()
        buffered = self._lines.append(
            MetricsLine(
                step=report.step,
                loss=report.loss,
                learning_rate=report.learning_rate,
                gradient_norm=report.gradient_norm,
                step_seconds=report.step_seconds,
                images_per_second=report.images / report.step_seconds,
                time=now,
            )
        )
        self._show(report, values, now)
        lost = not math.isfinite(report.loss)
        if lost or buffered >= _FLUSH_STEPS or time.monotonic() >= self._flush_at:
            self._store(durable=False)
        if not self._bar and (lost or report.step == total or time.monotonic() >= self._log_at):
            self._log("step", **({"step": report.step, "total_steps": total} | values))

    def flush(self) -> None:
        """Write all records: to be called before a checkpoint is, so that a run resumed from it finds them."""
        self._store()

    def checkpoint(self, step: int, seconds: float, size_bytes: int) -> None:
        """Record a checkpoint."""
        made = CheckpointRecord(step=step, seconds=seconds, size_bytes=size_bytes, time=datetime.now(UTC))
        self._update(checkpoints=(*(one for one in self._record.checkpoints if one.step != step), made))
        self._metrics.checkpointed(seconds)
        self._log("checkpoint", step=step, seconds=seconds, size_bytes=size_bytes)
        self._store()

    def warn(self, problem: Problem) -> None:
        """Record a problem that does not stop the run."""
        self._update(warnings=(*self._record.warnings, problem))
        self._log("warning", logging.WARNING, note=str(problem), problems=[problem.to_json()])
        self._store()

    def report(self, card: ReportCard, *, evaluated: EvaluationRecord | None = None) -> None:
        """Record the report card, with the evaluation that is new in it."""
        self._update(report=card)
        if evaluated is not None:
            figures = card.figures(evaluated.losses)
            self._metrics.evaluated(figures)
            for board in self._boards:
                board.curves(evaluated.step, {f"held_out/{name}": loss for name, loss in figures.items()})
            best = card.best.step if card.best else None
            self._log("evaluation", step=evaluated.step, best_step=best, **figures)
        self._store()

    def validation(
        self,
        step: int,
        images: Sequence[str],
        problems: Sequence[Problem],
        *,
        change: float | None = None,
        drift: float | None = None,
        nearest: Sequence[NearestRecord] = (),
    ) -> None:
        """Record a validation, which passed if it has no problems. ``images`` are relative to output_dir."""
        passed, reasons = not problems, tuple(map(str, problems))
        self._begin(step)
        made = ValidationRecord(
            step=step,
            images=tuple(images),
            passed=passed,
            reasons=reasons,
            problems=tuple(problems),
            change=change,
            drift=drift,
            nearest=tuple(nearest),
            time=datetime.now(UTC),
        )
        self._update(validations=(*(one for one in self._record.validations if one.step != step), made))
        self._metrics.validated(passed=passed)
        for board in self._boards:
            board.pictures(step, images)
        self._log(
            "validation", step=step, passed=passed, images=len(images), reasons=". ".join(reasons) or None,
            problems=[problem.to_json() for problem in problems] or None,
        )  # fmt: skip
        self._store()

    def has_validated(self, step: int) -> bool:
        """Return True if this run has validated the step, in this process or before it was resumed."""
        return any(made.step == step for made in self._record.validations)

    def published(self, reference: str) -> None:
        """Record the published adapter's reference, ``name@version``."""
        self._update(published=reference)
        self._log("published", adapter=reference)
        self._store()

    def finish(
        self, state: Literal["finished", "preempted", "failed"], problems: Sequence[Problem], exit_code: int | None
    ) -> None:
        """Record the end of the run. ``problems`` are the reasons of a failure; ``exit_code`` is None if it is not known."""
        message = ". ".join(map(str, problems)) or None
        self._update(**self._averages.values())
        self._update(
            state=state, message=message, problems=tuple(problems), exit_code=exit_code, ended=datetime.now(UTC)
        )
        self._metrics.state(state)
        level = logging.ERROR if state == "failed" else logging.INFO
        seconds = round(time.monotonic() - self._started, 3)
        self._log(
            state, level, step=self._record.step, seconds=seconds, exit_code=exit_code, message=message,
            problems=[problem.to_json() for problem in problems] or None,
        )  # fmt: skip
        self._store()

    def _open(self) -> None:
        self._metrics.state("running")
        self._metrics.phase("preparing")
        registry, run_id = self._metrics.registry, self._record.run_id
        if self._metrics_port is not None:
            self._stack.callback(Endpoint(registry, self._metrics_port).close)
        if self._pushgateway_url is not None:
            self._stack.callback(Pusher(registry, self._pushgateway_url, run_id=run_id).close)
        if self._shows_bar:
            self._bar = self._stack.enter_context(open_bar())
        self._previous = self._read_previous()
        # If this process is killed before training begins, the records of the previous one stay.
        if self._previous and self._previous.run_id == self._record.run_id:
            before = self._previous
            self._update(checkpoints=before.checkpoints, validations=before.validations, report=before.report)
        record, folder = self._record, str(self._output_dir)
        adapter, seed = record.config.get("adapter_name"), record.config.get("seed")
        self._log(
            "started", run_id=run_id, adapter=adapter, seed=seed, total_steps=record.total_steps, output_dir=folder
        )
        self._store()

    def _read_previous(self) -> RunRecord | None:
        """Return the record that is in output_dir: of this run before it was resumed, or of another run."""
        if not (self._output_dir / RUN_FILE).exists():
            return None
        try:
            return read_run(self._output_dir)
        except DataError as error:
            self._log("run_record_damaged", logging.WARNING, reason=str(error))
            return None

    def _begin(self, step: int) -> None:
        """Open the records when the step is known after which the run continues. Later calls do nothing."""
        if self._lines is not None or not self._writes:
            return
        self._lines = MetricsFile(self._output_dir, after_step=step)
        self._stack.callback(self._lines.close)
        self._boards = open_boards(
            self._report_to, self._output_dir, project=self._project, run_name=self._record.run_id,
            config=self._record.config, after_step=step,
        )  # fmt: skip
        for board in self._boards:
            self._stack.callback(self._close_board, board)
        self._metrics.resumed(step)
        self._update(start_step=step, step=step)
        before = self._previous if step else None
        self._update(
            checkpoints=tuple(made for made in before.checkpoints if made.step <= step) if before else (),
            validations=tuple(made for made in before.validations if made.step <= step) if before else (),
            report=self._record.report if step else None,
        )
        if step:
            self._log("resumed", step=step)
        self._flush_at = self._log_at = -math.inf  # the first step is written at once

    def _close_board(self, board: Board) -> None:
        board.close(self._record.state)

    def _show(self, report: StepReport, values: Mapping[str, float], now: float) -> None:
        exported = {**values, "last_step_timestamp_seconds": now}
        self._metrics.stepped(report.step, seconds=report.step_seconds, images=report.images, values=exported)
        for board in self._boards:
            board.curves(report.step, {name: values[name] for name in _CURVES})
        if self._bar:
            speed = f"{values['step_seconds']:.3g} s/step, {values['images_per_second']:.3g} images/s"
            figures = f"loss {values['smoothed_loss']:.4g}, {speed}"
            self._bar.show("training", report.step, self._record.total_steps, figures)

    def _update(self, **changes: Any) -> None:
        self._record = self._record.model_copy(update=changes)

    def _store(self, *, durable: bool = True) -> None:
        """Write the record to the files, in rank 0."""
        if not self._writes:
            return
        self._update(**self._averages.values())
        if self._record.dataset is not None:
            self._update(epoch=self._record.step / self._record.dataset.steps_per_epoch)
        self._update(updated=datetime.now(UTC))
        if self._lines is not None:
            self._lines.flush()
        write_run(self._output_dir, self._record, durable=durable)
        self._flush_at = time.monotonic() + _FLUSH_SECONDS

    def _log(self, event: str, level: int = logging.INFO, /, **fields: Any) -> None:
        """Log an event, in rank 0."""
        if self._writes:
            log_event(_logger, event, level, **fields)
            self._log_at = time.monotonic() + _LOG_SECONDS
