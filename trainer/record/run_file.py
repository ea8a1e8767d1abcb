"""The record of a run, which other programs read while it trains: ``run.json`` and ``metrics.jsonl``. No torch.

``run.json`` is replaced atomically: a reader sees the old or the new one. ``metrics.jsonl`` has a line for every optimizer
step and is only appended to; when a run is resumed, lines beyond its checkpoint are removed first. Numbers that JSON lacks
are strings: ``"NaN"``, ``"Infinity"``, ``"-Infinity"``.
"""

import logging
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, ValidationError

from longcat.errors import DataError
from longcat.logs import log_event
from longcat.problem import Problem
from longcat.storage.atomic import write_atomically
from longcat.storage.disk import not_written
from trainer.record.report_card import NearestRecord, ReportCard

RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"
_BUFFER_BYTES = 1 << 20
"""Larger than the buffered lines ever are: lines that a full disk rejects stay buffered for the next flush."""

State = Literal["running", "finished", "preempted", "failed"]
Phase = Literal["preparing", "caching", "training", "evaluating", "validating", "publishing"]
Count = Annotated[int, Field(ge=0)]

_log = logging.getLogger("lithograph.trainer")


def _problem(given: Any) -> Problem:
    try:
        return given if isinstance(given, Problem) else Problem.from_json(given)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a problem: {error}") from error


StoredProblem = Annotated[Problem, PlainValidator(_problem), PlainSerializer(Problem.to_json)]
"""A problem, stored as the JSON object from which other processes translate it."""


class _RecordPart(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class CacheRecord(_RecordPart):
    """The progress of caching one kind of entry."""

    done: Count
    total: Count
    hits: Count
    """Entries of ``done`` that existed before."""


class DatasetRecord(_RecordPart):
    """The training data."""

    pictures: Count
    dropped: Count
    """Files that cannot be used; ``dataset.json`` lists their problems."""
    steps_per_epoch: Annotated[float, Field(gt=0)]
    """Optimizer steps of an epoch."""


class CheckpointRecord(_RecordPart):
    """A checkpoint that was written. It may have been removed since, as too old."""

    step: Count
    seconds: float
    """Duration of writing it."""
    size_bytes: Count
    time: AwareDatetime


class ValidationRecord(_RecordPart):
    """A validation that was made."""

    step: Count
    images: tuple[str, ...]
    """Files relative to output_dir."""
    passed: bool
    reasons: tuple[str, ...]
    """Reasons for not passing, in English."""
    problems: tuple[StoredProblem, ...] = ()
    """The same reasons as problems, to translate."""
    change: float | None = None
    """Mean difference of pixels, 0 to 1, to the base's pictures of the training's own prompts; None if not recorded."""
    drift: float | None = None
    """The same for prompts that have nothing to do with the training; None without such prompts."""
    nearest: tuple[NearestRecord, ...] = ()
    """The training picture that each picture is nearest to."""
    time: AwareDatetime


class RunRecord(_RecordPart):
    """The content of ``run.json``."""

    format: Literal[1] = 1
    run_id: str
    state: State = "running"
    """A process that was killed leaves ``running``: compare ``updated``, or look for ``pid`` on ``hostname``."""
    phase: Phase = "preparing"
    """The current or last phase."""
    pid: int
    hostname: str
    started: AwareDatetime
    """Start of this process; a resumed run began earlier."""
    updated: AwareDatetime
    ended: AwareDatetime | None = None
    code_version: str
    start_step: Count = 0
    """The step of the checkpoint that was resumed."""
    step: Count = 0
    """Optimizer steps made."""
    total_steps: Count
    epoch: float | None = None
    """Passes over the data so far; None before the data is known."""
    loss: float | None = None
    """Loss of the last step; None before the first."""
    smoothed_loss: float | None = None
    """Averaged over about the last 50 steps."""
    learning_rate: float | None = None
    gradient_norm: float | None = None
    """Before clipping."""
    step_seconds: float | None = None
    """Averaged over about the last 50 steps."""
    images_per_second: float | None = None
    """Averaged over about the last 50 steps."""
    eta_seconds: float | None = None
    """Estimated time for the remaining steps, without checkpoints and validations."""
    cache: dict[str, CacheRecord] = {}
    """Progress by kind of entry."""
    dataset: DatasetRecord | None = None
    checkpoints: tuple[CheckpointRecord, ...] = ()
    validations: tuple[ValidationRecord, ...] = ()
    report: ReportCard | None = None
    """Losses on held-out pictures; None if none are held out."""
    published: str | None = None
    """Reference of the published adapter, ``name@version``."""
    finished_step: Count | None = None
    """Step at which the run last finished, kept by later attempts that fail; None if it has not finished."""
    config: dict[str, Any]
    message: str | None = None
    """Reason of a failure, in English."""
    problems: tuple[StoredProblem, ...] = ()
    """The same reason as problems, to translate."""
    warnings: tuple[StoredProblem, ...] = ()
    """Problems that do not stop the run."""
    exit_code: int | None = None


class MetricsLine(_RecordPart):
    """A line of ``metrics.jsonl``: one optimizer step."""

    step: Count
    loss: float
    learning_rate: float
    gradient_norm: float
    """Before clipping."""
    step_seconds: float
    images_per_second: float
    """Pictures per second of this step alone."""
    time: float
    """End of the step, in seconds since 1970."""


def make_output_dir(folder: Path) -> None:
    """Make output_dir and check that it can be written, before anything is computed. Raises ``StorageError``."""
    probe = folder / f".writable-{secrets.token_hex(4)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise not_written(folder, error, field="output_dir") from error


def write_run(output_dir: Path, record: RunRecord, *, durable: bool) -> None:
    """Replace ``run.json``. ``durable`` waits until it is on the disk, to survive a power cut. Raises ``StorageError``."""
    write_atomically(output_dir / RUN_FILE, record.model_dump_json(indent=1).encode() + b"\n", durable=durable)


def read_run(output_dir: Path) -> RunRecord:
    """Read the record of an output_dir. Raises ``DataError`` if it does not exist or cannot be read."""
    path = output_dir / RUN_FILE
    try:
        return RunRecord.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(
            "run_record_missing",
            "does not exist",
            remedy="give the output_dir of a training that has started",
            field="file",
            value=str(path),
        ) from error
    except (OSError, ValidationError) as error:
        raise DataError(
            "run_record_unreadable",
            "cannot be read: {reason}",
            remedy="read it with the version of Lithograph that wrote it",
            field="file",
            value=str(path),
            reason=str(error),
        ) from error


def read_metrics(output_dir: Path, after_step: int = 0) -> Iterator[MetricsLine]:
    """Yield the steps after ``after_step``, in order. An incomplete last line, which is being written, is left out.

    Raises ``DataError`` for a line that cannot be read.
    """
    path = output_dir / METRICS_FILE
    try:
        stream = path.open("rb")
    except FileNotFoundError:
        return
    with stream:
        for number, text in enumerate(stream, 1):
            if not text.endswith(b"\n"):
                return
            try:
                line = MetricsLine.model_validate_json(text)
            except ValidationError as error:
                raise DataError(
                    "metrics_line_damaged",
                    "line {number} is damaged",
                    remedy="remove that line",
                    field="file",
                    value=str(path),
                    number=number,
                ) from error
            if line.step > after_step:
                yield line


class MetricsFile:
    """The writer of ``metrics.jsonl``."""

    def __init__(self, output_dir: Path, *, after_step: int) -> None:
        """Remove lines beyond ``after_step``, and append after them. Raises ``StorageError``."""
        self._path = output_dir / METRICS_FILE
        self._buffered: list[str] = []
        _cut(self._path, after_step)
        try:
            self._stream = self._path.open("ab", buffering=_BUFFER_BYTES)
        except OSError as error:
            raise not_written(self._path, error) from error

    def append(self, line: MetricsLine) -> int:
        """Buffer a line; return the number of buffered lines."""
        self._buffered.append(line.model_dump_json() + "\n")
        return len(self._buffered)

    def flush(self) -> None:
        """Write the buffered lines. Raises ``StorageError``."""
        lines, self._buffered = self._buffered, []
        try:
            self._stream.write("".join(lines).encode())
            self._stream.flush()
        except OSError as error:
            raise not_written(self._path, error) from error

    def close(self) -> None:
        """Write the buffered lines, and close."""
        try:
            self.flush()
        finally:
            self._stream.close()


def _cut(path: Path, after_step: int) -> None:
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return
    kept: list[bytes] = []
    damaged = 0
    for text in lines:
        try:
            step = MetricsLine.model_validate_json(text).step if text.endswith(b"\n") else None
        except ValidationError:
            step = None
        if step is None:
            damaged += 1
        elif step <= after_step:
            kept.append(text)
    if damaged:
        log_event(_log, "metrics_damaged", logging.WARNING, path=str(path), lines_removed=damaged)
    if len(kept) < len(lines):
        write_atomically(path, b"".join(kept))
