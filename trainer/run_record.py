"""What a run says of itself, for others to read meanwhile: ``run.json`` and ``metrics.jsonl`` in output_dir. No torch.

``run.json`` is replaced as a whole: a reader sees the one before or the one after. ``metrics.jsonl`` has a line for every
optimizer step and only grows, but for a run that is resumed: what was written beyond its checkpoint is cut off first. A
number that JSON cannot write is a string: ``"NaN"``, ``"Infinity"``, ``"-Infinity"``.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from longcat.errors import DataError, StorageError
from longcat.logs import tell
from trainer.atomic import write_atomically

RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"
_BUFFER_BYTES = 1 << 20
"""More than ever waits: what a full disk refuses stays in the buffer, and another flush goes on where that one stopped."""

State = Literal["running", "finished", "preempted", "failed"]
Phase = Literal["preparing", "caching", "training", "validating", "publishing"]
Count = Annotated[int, Field(ge=0)]

_log = logging.getLogger("lithograph.trainer")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class CacheRecord(_Part):
    """How far the cache of one kind of entry is."""

    done: Count
    total: Count
    hits: Count
    """Of ``done``, those that were there already."""


class DatasetRecord(_Part):
    """What is trained on."""

    pictures: Count
    dropped: Count
    """Files that cannot be used; the log gives reasons."""
    steps_per_epoch: Annotated[float, Field(gt=0)]
    """Optimizer steps to see every picture as often as configured."""


class CheckpointRecord(_Part):
    """A checkpoint that was written; it may have made room for later ones since."""

    step: Count
    seconds: float
    """To write it."""
    size_bytes: Count
    time: AwareDatetime


class ValidationRecord(_Part):
    """A look at what the adapter does."""

    step: Count
    images: tuple[str, ...]
    """Files, relative to output_dir."""
    passed: bool
    reasons: tuple[str, ...]
    """Why it did not pass."""
    time: AwareDatetime


class RunRecord(_Part):
    """``run.json``."""

    format: Literal[1] = 1
    run_id: str
    state: State = "running"
    """A process that was killed leaves ``running``: look at ``updated``, or for ``pid`` on ``hostname``."""
    phase: Phase = "preparing"
    """The one it is in, or ended in."""
    pid: int
    hostname: str
    started: AwareDatetime
    """Of this process; a run that was resumed began earlier."""
    updated: AwareDatetime
    ended: AwareDatetime | None = None
    code_version: str
    start_step: Count = 0
    """Steps that a checkpoint brought."""
    step: Count = 0
    """Optimizer steps made."""
    total_steps: Count
    epoch: float | None = None
    """Times that the pictures were seen; None before the data is known."""
    loss: float | None = None
    """Of the last step; None before the first."""
    smoothed_loss: float | None = None
    """Averaged over about the last 50 steps."""
    learning_rate: float | None = None
    gradient_norm: float | None = None
    """Before clipping."""
    step_seconds: float | None = None
    """Averaged over about the last 50 steps."""
    images_per_second: float | None = None
    """Averaged likewise."""
    eta_seconds: float | None = None
    """For the steps that are left, without checkpoints and validations."""
    cache: dict[str, CacheRecord] = {}
    """By kind of entry."""
    dataset: DatasetRecord | None = None
    checkpoints: tuple[CheckpointRecord, ...] = ()
    validations: tuple[ValidationRecord, ...] = ()
    published: str | None = None
    """``name@version``."""
    config: dict[str, Any]
    message: str | None = None
    """What went wrong."""
    exit_code: int | None = None


class MetricsLine(_Part):
    """A line of ``metrics.jsonl``: one optimizer step."""

    step: Count
    loss: float
    learning_rate: float
    gradient_norm: float
    """Before clipping."""
    step_seconds: float
    images_per_second: float
    """Of this step alone."""
    time: float
    """Seconds since 1970, when the step ended."""


def write_run(output_dir: Path, record: RunRecord, *, durable: bool) -> None:
    """Replace ``run.json``. ``durable`` waits for the disk: for what must outlast a power cut. Raises ``StorageError``."""
    write_atomically(output_dir / RUN_FILE, record.model_dump_json(indent=1).encode() + b"\n", durable=durable)


def read_run(output_dir: Path) -> RunRecord:
    """The run of an output_dir as it stands. Raises ``DataError`` if there is none that can be read."""
    path = output_dir / RUN_FILE
    try:
        return RunRecord.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{path} is not there: give the output_dir of a training that has begun") from error
    except (OSError, ValidationError) as error:
        raise DataError(f"{path} cannot be read: {error}; is it of another version of Lithograph?") from error


def read_metrics(output_dir: Path, after_step: int = 0) -> Iterator[MetricsLine]:
    """The steps beyond ``after_step``, in order; none before the first. A line that is being written is left for later.

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
                raise DataError(f"{path}, line {number} is damaged: remove that line") from error
            if line.step > after_step:
                yield line


class MetricsFile:
    """``metrics.jsonl`` as its one writer holds it."""

    def __init__(self, output_dir: Path, *, after_step: int) -> None:
        """Cut off what is beyond ``after_step``, and go on from there. Raises ``StorageError``."""
        self._path = output_dir / METRICS_FILE
        self._waiting: list[str] = []
        _cut(self._path, after_step)
        try:
            self._stream = self._path.open("ab", buffering=_BUFFER_BYTES)
        except OSError as error:
            raise _unwritable(self._path, error) from error

    def append(self, line: MetricsLine) -> int:
        """Take a line; how many wait to be written."""
        self._waiting.append(line.model_dump_json() + "\n")
        return len(self._waiting)

    def flush(self) -> None:
        """Write what waits. Raises ``StorageError``."""
        lines, self._waiting = self._waiting, []
        try:
            self._stream.write("".join(lines).encode())
            self._stream.flush()
        except OSError as error:
            raise _unwritable(self._path, error) from error

    def close(self) -> None:
        """Write what waits, and close."""
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
        tell(_log, "metrics_damaged", logging.WARNING, path=str(path), lines_removed=damaged)
    if len(kept) < len(lines):
        write_atomically(path, b"".join(kept))


def _unwritable(path: Path, error: OSError) -> StorageError:
    return StorageError(f"{path} cannot be written: {error.strerror or error}; check the disk and output_dir")
