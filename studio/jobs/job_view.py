"""A job as it stands: its record, and what its executor and its trainer report. No torch."""

from dataclasses import dataclass
from pathlib import Path

from longcat.problem import Problem
from studio.jobs.executor import ExecutorStatus
from studio.jobs.record import JobRecord, State
from trainer.record.run_file import RunRecord

PREEMPTED = 75
"""The trainer's exit code when it was told to stop and has saved."""
_TERMINATED = {143, 130, -15, -2}
"""Told to stop before it had anything to save."""
_KILLED = {137, -9}


@dataclass(frozen=True, kw_only=True)
class JobView:
    """A job as it stands."""

    job: JobRecord
    folder: Path
    state: State
    exit_code: int | None
    """Of the last try, once it is over."""
    reason: Problem | None
    """What its place says beside it, or why it could not be started."""
    output: Path | None
    """The trainer's output_dir, if it can be seen from here."""
    run: RunRecord | None
    """What the trainer says of itself."""

    @property
    def problems(self) -> tuple[Problem, ...]:
        """The problems that ended it: the trainer's, else the executor's. None where it finished, or was stopped here."""
        if self.state not in (State.FAILED, State.KILLED, State.STOPPED):
            return ()
        if self.run is not None and self.run.state == "failed" and self.run.problems:
            return self.run.problems
        return () if self.reason is None else (self.reason,)

    @property
    def share(self) -> float:
        """Return the share of steps made, 0 to 1."""
        return self.run.step / self.run.total_steps if self.run is not None and self.run.total_steps else 0.0


def state_of(job: JobRecord, look: ExecutorStatus) -> State:
    """Return the state of a job whose executor reports this."""
    if job.refused is not None:
        return State.FAILED
    if not job.has_begun:
        return State.QUEUED if job.wanted == "run" else State.STOPPED
    if look.is_alive:
        if job.wanted == "stop":
            return State.STOPPING
        return State.QUEUED if look.is_waiting else State.RUNNING
    match look.exit_code:
        case 0:
            return State.FINISHED
        case int(code) if code == PREEMPTED or code in _TERMINATED:
            return State.STOPPED
        case None:
            return State.STOPPED if job.wanted == "stop" else State.KILLED
        case int(code) if code in _KILLED:
            return State.STOPPED if job.wanted == "stop" else State.KILLED
    return State.FAILED
