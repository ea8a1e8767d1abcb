"""The progress of a run, reported to bar or log, ``run.json``, ``metrics.jsonl``, Prometheus and trackers. No torch.

One object receives every event. Files are written at most once a second or every 50 steps, and after every rare event.
"""

import logging
import math
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from longcat.errors import DataError
from longcat.logs import log_event
from longcat.problem import Problem
from trainer.record.averages import StepReport
from trainer.record.bar import Bar, open_bar
from trainer.record.boards.board import Board, open_boards
from trainer.record.metrics import Endpoint, Pusher, TrainerMetrics
from trainer.record.outcome import problems_of
from trainer.record.report_card import EvaluationRecord, NearestRecord, ReportCard
from trainer.record.run_file import (
    CacheRecord,
    CheckpointRecord,
    DatasetRecord,
    Phase,
    ValidationRecord,
)
from trainer.record.stored_run import StoredRun

__all__ = ["RunProgress", "StepReport"]

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
        self._stored = StoredRun(output_dir, run_id=run_id, total_steps=total_steps, config=config, writes=writes)
        self._started = time.monotonic()
        self._output_dir = output_dir
        self._report_to = report_to
        self._project = project
        self._metrics_port = metrics_port
        self._pushgateway_url = pushgateway_url
        self._shows_bar = show_bar and sys.stderr.isatty()
        self._writes = writes
        self._metrics = TrainerMetrics(total_steps=total_steps)
        self._stack = ExitStack()
        self._boards: tuple[Board, ...] = ()
        self._bar: Bar | None = None
        self._log_at = -math.inf

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
            if self._stored.record.ended is None:
                self.finish("failed", problems_of(error) if error else (_NO_RESULT,), None)

    def resumed(self, step: int) -> None:
        """Continue after this step, 0 for a new run. Records of later steps are removed."""
        self._begin(step)
        self._stored.store()

    def dataset(self, *, pictures: int, dropped: int, steps_per_epoch: float) -> None:
        """Record the training data."""
        self._stored.update(dataset=DatasetRecord(pictures=pictures, dropped=dropped, steps_per_epoch=steps_per_epoch))
        self._log("dataset", pictures=pictures, dropped=dropped, steps_per_epoch=steps_per_epoch)
        self._stored.store()

    def phase(self, name: Phase) -> None:
        """Begin a phase."""
        self._stored.update(phase=name)
        self._metrics.phase(name)
        self._log("phase", name=name)
        self._stored.store()

    def cache(self, kind: str, done: int, total: int, hits: int) -> None:
        """Record the progress of caching one kind of entry. ``hits`` of ``done`` existed before."""
        before = self._stored.record.cache.get(kind) or CacheRecord(done=0, total=total, hits=0)
        self._metrics.cached(kind, hits=hits - before.hits, made=done - hits - (before.done - before.hits))
        self._stored.update(cache=self._stored.record.cache | {kind: CacheRecord(done=done, total=total, hits=hits)})
        if self._bar:
            self._bar.show(kind, done, total)
        if done == total or time.monotonic() >= self._log_at:
            self._log("cached", kind=kind, done=done, total=total, hits=hits)
        if done == total or self._stored.is_due:
            self._stored.store(durable=False)

    def denoising(self, done: int, total: int, picture: str) -> None:
        """Record the progress of a validation in denoising steps, and the picture under way."""
        if self._bar:
            self._bar.show("validating", done, total, picture)
        elif time.monotonic() >= self._log_at:
            self._log("denoising", done=done, total=total, picture=picture)

    def step(self, report: StepReport) -> None:
        """Record an optimizer step."""
        self._begin(report.step - 1)
        now = time.time()
        values = self._stored.add(report, at=now)
        self._show(report, values, now)
        total, lost = self._stored.record.total_steps, not math.isfinite(report.loss)
        if lost or self._stored.is_due:
            self._stored.store(durable=False)
        if not self._bar and (lost or report.step == total or time.monotonic() >= self._log_at):
            self._log("step", **({"step": report.step, "total_steps": total} | values))

    def flush(self) -> None:
        """Write all records: to be called before a checkpoint is, so that a run resumed from it finds them."""
        self._stored.store()

    def checkpoint(self, step: int, seconds: float, size_bytes: int) -> None:
        """Record a checkpoint."""
        made = CheckpointRecord(step=step, seconds=seconds, size_bytes=size_bytes, time=datetime.now(UTC))
        self._stored.update(checkpoints=(*(one for one in self._stored.record.checkpoints if one.step != step), made))
        self._metrics.checkpointed(seconds)
        self._log("checkpoint", step=step, seconds=seconds, size_bytes=size_bytes)
        self._stored.store()

    def warn(self, problem: Problem) -> None:
        """Record a problem that does not stop the run."""
        self._stored.update(warnings=(*self._stored.record.warnings, problem))
        self._log("warning", logging.WARNING, note=str(problem), problems=[problem.to_json()])
        self._stored.store()

    def report(self, card: ReportCard, *, evaluated: EvaluationRecord | None = None) -> None:
        """Record the report card, with the evaluation that is new in it."""
        self._stored.update(report=card)
        if evaluated is not None:
            figures = card.figures(evaluated.losses)
            self._metrics.evaluated(figures)
            for board in self._boards:
                board.curves(evaluated.step, {f"held_out/{name}": loss for name, loss in figures.items()})
            best = card.best.step if card.best else None
            self._log("evaluation", step=evaluated.step, best_step=best, **figures)
        self._stored.store()

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
        self._stored.update(validations=(*(one for one in self._stored.record.validations if one.step != step), made))
        self._metrics.validated(passed=passed)
        for board in self._boards:
            board.pictures(step, images)
        self._log(
            "validation", step=step, passed=passed, images=len(images), reasons=". ".join(reasons) or None,
            problems=[problem.to_json() for problem in problems] or None,
        )  # fmt: skip
        self._stored.store()

    def has_validated(self, step: int) -> bool:
        """Return True if this run has validated the step, in this process or before it was resumed."""
        return any(made.step == step for made in self._stored.record.validations)

    def published(self, reference: str) -> None:
        """Record the published adapter's reference, ``name@version``."""
        self._stored.update(published=reference)
        self._log("published", adapter=reference)
        self._stored.store()

    def finish(
        self, state: Literal["finished", "preempted", "failed"], problems: Sequence[Problem], exit_code: int | None
    ) -> None:
        """Record the end of the run. ``problems`` are the reasons of a failure; ``exit_code`` is None if it is not known."""
        message = ". ".join(map(str, problems)) or None
        self._stored.update_metrics()
        self._stored.update(
            state=state, message=message, problems=tuple(problems), exit_code=exit_code, ended=datetime.now(UTC)
        )
        if state == "finished":
            self._stored.update(finished_step=self._stored.record.step)
        self._metrics.state(state)
        level = logging.ERROR if state == "failed" else logging.INFO
        seconds = round(time.monotonic() - self._started, 3)
        self._log(
            state, level, step=self._stored.record.step, seconds=seconds, exit_code=exit_code, message=message,
            problems=[problem.to_json() for problem in problems] or None,
        )  # fmt: skip
        self._stored.store()

    def _open(self) -> None:
        self._metrics.state("running")
        self._metrics.phase("preparing")
        registry, run_id = self._metrics.registry, self._stored.record.run_id
        if self._metrics_port is not None:
            self._stack.callback(Endpoint(registry, self._metrics_port).close)
        if self._pushgateway_url is not None:
            self._stack.callback(Pusher(registry, self._pushgateway_url, run_id=run_id).close)
        if self._shows_bar:
            self._bar = self._stack.enter_context(open_bar())
        try:
            self._stored.continue_previous()
        except DataError as error:
            self._log("run_record_damaged", logging.WARNING, reason=str(error))
        record, folder = self._stored.record, str(self._output_dir)
        adapter, seed = record.config.get("adapter_name"), record.config.get("seed")
        self._log(
            "started", run_id=run_id, adapter=adapter, seed=seed, total_steps=record.total_steps, output_dir=folder
        )
        self._stored.store()

    def _begin(self, step: int) -> None:
        """Open the records when the step is known after which the run continues. Later calls do nothing."""
        if self._stored.has_begun or not self._writes:
            return
        self._stored.begin(step)
        self._stack.callback(self._stored.close)
        self._boards = open_boards(
            self._report_to, self._output_dir, project=self._project, run_name=self._stored.record.run_id,
            config=self._stored.record.config, after_step=step,
        )  # fmt: skip
        for board in self._boards:
            self._stack.callback(self._close_board, board)
        self._metrics.resumed(step)
        if step:
            self._log("resumed", step=step)
        self._log_at = -math.inf  # the first step is logged at once

    def _close_board(self, board: Board) -> None:
        board.close(self._stored.record.state)

    def _show(self, report: StepReport, values: Mapping[str, float], now: float) -> None:
        exported = {**values, "last_step_timestamp_seconds": now}
        self._metrics.stepped(report.step, seconds=report.step_seconds, images=report.images, values=exported)
        for board in self._boards:
            board.curves(report.step, {name: values[name] for name in _CURVES})
        if self._bar:
            speed = f"{values['step_seconds']:.3g} s/step, {values['images_per_second']:.3g} images/s"
            figures = f"loss {values['smoothed_loss']:.4g}, {speed}"
            self._bar.show("training", report.step, self._stored.record.total_steps, figures)

    def _log(self, event: str, level: int = logging.INFO, /, **fields: Any) -> None:
        """Log an event, in rank 0."""
        if self._writes:
            log_event(_logger, event, level, **fields)
            self._log_at = time.monotonic() + _LOG_SECONDS
