"""The directory of one training: its record, configuration, log and output. No torch.

::

    ID/job.json      this record, replaced as a whole
    ID/config.json   the configuration of ``lithograph train``
    ID/log           the output of all attempts
    ID/exit          the exit code of the last attempt, once it is over
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
ExecutorName = Literal["local", "kubernetes"]


class State(StrEnum):
    """State of a job."""

    QUEUED = "queued"
    """Waits for other jobs of this machine, or for room in the cluster."""
    RUNNING = "running"
    STOPPING = "stopping"
    """Saving a checkpoint before it stops."""
    FINISHED = "finished"
    STOPPED = "stopped"
    """Stopped by request or preempted; resuming continues from its last checkpoint."""
    FAILED = "failed"
    KILLED = "killed"
    """Ended without an exit code of its own: out of memory, power cut, kill -9."""

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
        """Return the state as a detail of a problem, which has a form in every language."""
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
    """A process on this machine; its start time distinguishes it from a later one of the same number."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pid: int
    started: float
    """Seconds from the machine's boot to its start, which a correction of the clock does not change."""


class JobRecord(BaseModel):
    """The content of ``job.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    id: str
    name: str
    """Display name, usually the adapter's."""
    executor: ExecutorName = "local"
    created: AwareDatetime
    queued: AwareDatetime
    """Time it was queued; the job queued longest starts first."""
    desired: Literal["run", "stop"] = "run"
    process: Process | None = None
    """The process of the last attempt, on this machine."""
    remote: str | None = None
    """The Kubernetes Job of the last attempt, as ``namespace/name``."""
    refused: StoredProblem | None = None
    """The problem for which the executor did not start it."""
    tries: Annotated[int, Field(ge=0)] = 0

    @property
    def has_begun(self) -> bool:
        """Return True if the current attempt was started."""
        return self.process is not None or self.remote is not None


def read_job(folder: Path) -> JobRecord:
    """Read the record of a job's directory. Raises ``DataError`` if it is missing or unreadable."""
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
    """Return an id that sorts by time and is valid as a directory's and a Kubernetes object's name."""
    plain = "".join(char for char in name.lower() if char.isascii() and (char.isalnum() or char == "-")).strip("-")
    return "-".join(part for part in (f"{now:%Y%m%d-%H%M%S}", plain[:24].strip("-"), suffix) if part)
