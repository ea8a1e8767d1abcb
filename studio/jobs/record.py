"""One training that the studio was asked for: a directory with what was wanted, what runs and what it made. No torch.

::

    ID/job.json      this record, replaced as a whole
    ID/config.json   what ``lithograph train`` is started with
    ID/log           everything that it printed, all tries
    ID/exit          the exit code of the last try, once it is over
    ID/output/       the trainer's output_dir: run.json, metrics.jsonl, checkpoints, pictures, the adapter
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from longcat.errors import DataError
from longcat.problem import Problem, reason_of
from longcat.storage.atomic import write_atomically
from longcat.validation import problems_of
from trainer.record.run_file import StoredProblem

JOB_FILE, CONFIG_FILE, LOG_FILE, EXIT_FILE, OUTPUT = "job.json", "config.json", "log", "exit", "output"
PlaceName = Literal["local", "kubernetes"]


class State(StrEnum):
    """State of a job."""

    QUEUED = "queued"
    """Waits for a place on this machine, or for one in the cluster."""
    RUNNING = "running"
    STOPPING = "stopping"
    """Told to stop; it saves a checkpoint."""
    FINISHED = "finished"
    STOPPED = "stopped"
    """By request, or preempted: resuming goes on from its last checkpoint."""
    FAILED = "failed"
    KILLED = "killed"
    """Gone without a word: out of memory, power cut, kill -9."""

    @property
    def is_over(self) -> bool:
        """Return True if no attempt runs or is queued."""
        return self in _OVER

    @property
    def can_resume(self) -> bool:
        """Return True if another attempt can continue the job."""
        return self in (State.STOPPED, State.FAILED, State.KILLED)

    @property
    def word(self) -> Problem:
        """The state as a detail of a problem, in the reader's language."""
        return _WORDS[self]


_OVER = {State.FINISHED, State.STOPPED, State.FAILED, State.KILLED}
_WORDS: Mapping[State, Problem] = {
    State.QUEUED: Problem(code="state_queued", template="queued"),
    State.RUNNING: Problem(code="state_running", template="running"),
    State.STOPPING: Problem(code="state_stopping", template="stopping"),
    State.FINISHED: Problem(code="state_finished", template="finished"),
    State.STOPPED: Problem(code="state_stopped", template="stopped"),
    State.FAILED: Problem(code="state_failed", template="failed"),
    State.KILLED: Problem(code="state_killed", template="killed"),
}


class Process(BaseModel):
    """A process on this machine, told apart from a later one of the same number by when it started."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pid: int
    started: float
    """Seconds from the boot of the machine to its start: no correction of the clock changes them."""


class JobRecord(BaseModel):
    """``job.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    id: str
    name: str
    """What people call it: the adapter's name, usually."""
    place: PlaceName = "local"
    created: AwareDatetime
    queued: AwareDatetime
    """Since when it waits, or waited: who waits longest starts first."""
    wanted: Literal["run", "stop"] = "run"
    process: Process | None = None
    """Of the last try, on this machine."""
    remote: str | None = None
    """The Kubernetes Job of the last try, as ``namespace/name``."""
    refused: StoredProblem | None = None
    """The problem for which the executor did not start it."""
    tries: Annotated[int, Field(ge=0)] = 0

    @property
    def has_begun(self) -> bool:
        """Return True if the current attempt was started."""
        return self.process is not None or self.remote is not None


def read_job(folder: Path) -> JobRecord:
    """The record of a job's directory. Raises ``DataError`` if there is none that can be read."""
    try:
        return JobRecord.model_validate_json((folder / JOB_FILE).read_bytes())
    except (OSError, ValidationError) as error:
        reason = next(problems_of(error, JobRecord)) if isinstance(error, ValidationError) else reason_of(error)
        raise DataError(
            "job_record_unreadable", "cannot be read: {reason}", remedy="check that this version of Lithograph wrote it",
            field="file", value=str(folder / JOB_FILE), reason=reason,
        ) from error  # fmt: skip


def unreadable_job(folder: Path, problem: Problem) -> JobRecord:
    """Return a failed job in place of a record that cannot be read."""
    made = datetime.fromtimestamp(folder.stat().st_mtime, UTC)
    return JobRecord(id=folder.name, name=folder.name, created=made, queued=made, refused=problem)


def write_job(folder: Path, job: JobRecord) -> None:
    """Replace the record. Raises ``StorageError``."""
    write_atomically(folder / JOB_FILE, job.model_dump_json(indent=1).encode() + b"\n")


def job_id(name: str, now: datetime, suffix: str) -> str:
    """Sorts by time, and can be a directory's and a Kubernetes object's name."""
    plain = "".join(char for char in name.lower() if char.isascii() and (char.isalnum() or char == "-")).strip("-")
    return "-".join(part for part in (f"{now:%Y%m%d-%H%M%S}", plain[:24].strip("-"), suffix) if part)
