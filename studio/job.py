"""One training that the studio was asked for: a directory with what was wanted, what runs and what it made. No torch.

::

    ID/job.json      this record, replaced as a whole
    ID/config.json   what ``lithograph train`` is started with
    ID/log           everything that it printed, all tries
    ID/exit          the exit code of the last try, once it is over
    ID/output/       the trainer's output_dir: run.json, metrics.jsonl, checkpoints, pictures, the adapter
"""

from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from longcat.errors import DataError
from trainer.atomic import write_atomically

JOB_FILE, CONFIG_FILE, LOG_FILE, EXIT_FILE, OUTPUT = "job.json", "config.json", "log", "exit", "output"
PlaceName = Literal["local", "kubernetes"]


class State(StrEnum):
    """Where a job stands."""

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
        """Whether nothing of it runs or is to run."""
        return self in _OVER

    @property
    def can_resume(self) -> bool:
        """Whether another try can bring it further."""
        return self in (State.STOPPED, State.FAILED, State.KILLED)


_OVER = {State.FINISHED, State.STOPPED, State.FAILED, State.KILLED}


class Process(BaseModel):
    """A process on this machine, told apart from a later one of the same number by when it started."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pid: int
    started: float
    """Seconds since 1970, as the kernel has it."""


class Job(BaseModel):
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
    refused: str | None = None
    """Why its place did not take it."""
    tries: Annotated[int, Field(ge=0)] = 0

    @property
    def has_begun(self) -> bool:
        """Whether its present try was started."""
        return self.process is not None or self.remote is not None


def read_job(folder: Path) -> Job:
    """The record of a job's directory. Raises ``DataError`` if there is none that can be read."""
    try:
        return Job.model_validate_json((folder / JOB_FILE).read_bytes())
    except (OSError, ValidationError) as error:
        raise DataError(
            f"{folder / JOB_FILE} cannot be read: {error}; is it of another version of Lithograph?"
        ) from error


def write_job(folder: Path, job: Job) -> None:
    """Replace the record. Raises ``StorageError``."""
    write_atomically(folder / JOB_FILE, job.model_dump_json(indent=1).encode() + b"\n")


def job_id(name: str, now: datetime, suffix: str) -> str:
    """Sorts by time, and can be a directory's and a Kubernetes object's name."""
    plain = "".join(char for char in name.lower() if char.isascii() and (char.isalnum() or char == "-")).strip("-")
    return "-".join(part for part in (f"{now:%Y%m%d-%H%M%S}", plain[:24].strip("-"), suffix) if part)
