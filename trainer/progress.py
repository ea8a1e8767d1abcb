"""How a training run is seen: a bar or log lines, ``run.json``, ``metrics.jsonl``, Prometheus, TensorBoard. No torch.

One object hears what happens and tells all of them. Files are written at most once a second or fifty steps, and at
everything that happens seldom.
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
from longcat.logs import tell
from trainer.bar import Bar, open_bar
from trainer.board import Board
from trainer.figures import Figures, StepReport
from trainer.metrics import Endpoint, Metrics, Pusher
from trainer.run_record import (
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

__all__ = ["Progress", "StepReport"]

_FLUSH_STEPS = 50
_FLUSH_SECONDS = 1.0
_LOG_SECONDS = 30.0
_CURVES = ("loss", "learning_rate", "gradient_norm", "images_per_second")

_log = logging.getLogger("lithograph.trainer")


class Progress:
    """A context manager: what has begun is closed, and a run that says nothing of its end has failed."""

    def __init__(
        self,
        output_dir: Path,
        *,
        run_id: str,
        config: Mapping[str, Any],
        total_steps: int,
        start_step: int,
        tensorboard: bool,
        metrics_port: int | None,
        pushgateway_url: str | None,
        show_bar: bool,
        writes: bool = True,
    ) -> None:
        """A bar is shown on a terminal only.

        ``start_step``: 0 if it is not known yet; the first step tells. ``writes``: False for all but one of several
        processes: they leave nothing behind and say nothing.
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
        self._output_dir = output_dir
        self._start_step = start_step
        self._has_board = tensorboard
        self._metrics_port = metrics_port
        self._pushgateway_url = pushgateway_url
        self._shows_bar = show_bar and sys.stderr.isatty()
        self._writes = writes
        self._metrics = Metrics(total_steps=total_steps)
        self._figures = Figures(total_steps=total_steps)
        self._previous: RunRecord | None = None
        self._stack = ExitStack()
        self._lines: MetricsFile | None = None
        self._board: Board | None = None
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
                said = f"{type(error).__name__}: {error}" if error else "it did not say how it ended"
                self.finish("failed", said, None)

    def resumed(self, step: int) -> None:
        """The run goes on after this step, 0 for a new one. What was recorded of later ones is cut off."""
        self._begin(step)
        self._store()

    def dataset(self, *, pictures: int, dropped: int, steps_per_epoch: float) -> None:
        """What is trained on."""
        self._update(dataset=DatasetRecord(pictures=pictures, dropped=dropped, steps_per_epoch=steps_per_epoch))
        self._say("dataset", pictures=pictures, dropped=dropped, steps_per_epoch=steps_per_epoch)
        self._store()

    def phase(self, name: Phase) -> None:
        """What is being done from now on."""
        self._update(phase=name)
        self._metrics.phase(name)
        self._say("phase", name=name)
        self._store()

    def cache(self, kind: str, done: int, total: int, hits: int) -> None:
        """How far the cache of one kind is; ``hits`` of ``done`` were there already."""
        before = self._record.cache.get(kind) or CacheRecord(done=0, total=total, hits=0)
        self._metrics.cached(kind, hits=hits - before.hits, made=done - hits - (before.done - before.hits))
        self._update(cache=self._record.cache | {kind: CacheRecord(done=done, total=total, hits=hits)})
        if self._bar:
            self._bar.show(kind, done, total)
        if done == total or time.monotonic() >= self._log_at:
            self._say("cached", kind=kind, done=done, total=total, hits=hits)
        if done == total or time.monotonic() >= self._flush_at:
            self._store(durable=False)

    def drawing(self, done: int, total: int, what: str) -> None:
        """How many of a validation's steps are made, and what is being drawn."""
        if self._bar:
            self._bar.show("validating", done, total, what)
        elif time.monotonic() >= self._log_at:
            self._say("drawing", done=done, total=total, what=what)

    def step(self, report: StepReport) -> None:
        """An optimizer step was made."""
        total = self._record.total_steps
        self._begin(report.step - 1)
        assert self._lines is not None, "only the process that writes reports steps"
        self._figures.add(report)
        known, now = self._figures.known(), time.time()
        waiting = self._lines.append(
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
        self._show(report, known, now)
        lost = not math.isfinite(report.loss)
        if lost or waiting >= _FLUSH_STEPS or time.monotonic() >= self._flush_at:
            self._store(durable=False)
        if not self._bar and (lost or report.step == total or time.monotonic() >= self._log_at):
            self._say("step", **({"step": report.step, "total_steps": total} | known))

    def flush(self) -> None:
        """Write what is known: before a checkpoint is there, whose resuming goes by what was recorded until then."""
        self._store()

    def checkpoint(self, step: int, seconds: float, size_bytes: int) -> None:
        """A checkpoint was written."""
        made = CheckpointRecord(step=step, seconds=seconds, size_bytes=size_bytes, time=datetime.now(UTC))
        self._update(checkpoints=(*(one for one in self._record.checkpoints if one.step != step), made))
        self._metrics.checkpointed(seconds)
        self._say("checkpoint", step=step, seconds=seconds, size_bytes=size_bytes)
        self._store()

    def validation(self, step: int, images: Sequence[str], passed: bool, reasons: Sequence[str]) -> None:
        """A validation was made; ``images`` are relative to output_dir, ``reasons`` say why it did not pass."""
        self._begin(step)
        made = ValidationRecord(
            step=step, images=tuple(images), passed=passed, reasons=tuple(reasons), time=datetime.now(UTC)
        )
        self._update(validations=(*(one for one in self._record.validations if one.step != step), made))
        self._metrics.validated(passed=passed)
        if self._board:
            self._board.pictures(step, images)
        self._say("validation", step=step, passed=passed, images=len(images), reasons="; ".join(reasons) or None)
        self._store()

    def has_validated(self, step: int) -> bool:
        """Whether this run has, now or before it was resumed."""
        return any(made.step == step for made in self._record.validations)

    def published(self, reference: str) -> None:
        """The adapter can be asked for by this name, ``name@version``."""
        self._update(published=reference)
        self._say("published", adapter=reference)
        self._store()

    def finish(
        self, state: Literal["finished", "preempted", "failed"], message: str | None, exit_code: int | None
    ) -> None:
        """How it ended; ``exit_code`` is None if nobody knows."""
        self._update(**self._figures.known())
        self._update(state=state, message=message, exit_code=exit_code, ended=datetime.now(UTC))
        self._metrics.state(state)
        level = logging.ERROR if state == "failed" else logging.INFO
        seconds = (datetime.now(UTC) - self._record.started).total_seconds()
        self._say(state, level, step=self._record.step, seconds=seconds, exit_code=exit_code, message=message)
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
        # If this try is killed before it begins, what the one before recorded stays.
        if self._previous and self._previous.run_id == self._record.run_id:
            self._update(checkpoints=self._previous.checkpoints, validations=self._previous.validations)
        if self._start_step:
            self._begin(self._start_step)
        record, folder = self._record, str(self._output_dir)
        adapter, seed = record.config.get("adapter_name"), record.config.get("seed")
        self._say(
            "started", run_id=run_id, adapter=adapter, seed=seed, total_steps=record.total_steps, output_dir=folder
        )
        self._store()

    def _read_previous(self) -> RunRecord | None:
        """What this run recorded before it was resumed, or another one of the same directory."""
        if not (self._output_dir / RUN_FILE).exists():
            return None
        try:
            return read_run(self._output_dir)
        except DataError as error:
            self._say("run_record_damaged", logging.WARNING, reason=str(error))
            return None

    def _begin(self, step: int) -> None:
        """Once, when the step is known after which the run goes on."""
        if self._lines is not None or not self._writes:
            return
        self._lines = MetricsFile(self._output_dir, after_step=step)
        self._stack.callback(self._lines.close)
        if self._has_board:
            self._board = Board(self._output_dir, after_step=step)
            self._stack.callback(self._board.close)
        self._metrics.resumed(step)
        self._update(start_step=step, step=step)
        before = self._previous if step else None
        self._update(
            checkpoints=tuple(made for made in before.checkpoints if made.step <= step) if before else (),
            validations=tuple(made for made in before.validations if made.step <= step) if before else (),
        )
        if step:
            self._say("resumed", step=step)
        self._flush_at = self._log_at = -math.inf  # the first step is seen at once

    def _show(self, report: StepReport, known: Mapping[str, float], now: float) -> None:
        figures = {**known, "last_step_timestamp_seconds": now}
        self._metrics.stepped(report.step, seconds=report.step_seconds, images=report.images, figures=figures)
        if self._board:
            self._board.figures(report.step, {name: known[name] for name in _CURVES})
        if self._bar:
            speed = f"{known['step_seconds']:.3g} s/step, {known['images_per_second']:.3g} images/s"
            said = f"loss {known['smoothed_loss']:.4g}, {speed}"
            self._bar.show("training", report.step, self._record.total_steps, said)

    def _update(self, **changes: Any) -> None:
        self._record = self._record.model_copy(update=changes)

    def _store(self, *, durable: bool = True) -> None:
        """Write what is known to the files, if this process is the one that does."""
        if not self._writes:
            return
        self._update(**self._figures.known())
        if self._record.dataset is not None:
            self._update(epoch=self._record.step / self._record.dataset.steps_per_epoch)
        self._update(updated=datetime.now(UTC))
        if self._lines is not None:
            self._lines.flush()
        write_run(self._output_dir, self._record, durable=durable)
        self._flush_at = time.monotonic() + _FLUSH_SECONDS

    def _say(self, event: str, level: int = logging.INFO, /, **fields: Any) -> None:
        """One log line, from the process that speaks."""
        if self._writes:
            tell(_log, event, level, **fields)
            self._log_at = time.monotonic() + _LOG_SECONDS
