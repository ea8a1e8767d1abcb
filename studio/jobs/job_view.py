"""The view of a job: its record, with the reports of its executor and its trainer. No torch."""

import signal
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from longcat.problem import Problem
from studio.jobs.executor import ExecutorStatus
from studio.jobs.record import JobRecord, State
from trainer.record.outcome import INTERRUPTED, KILLED, TERMINATED, Outcome
from trainer.record.run_file import RunRecord

_TERMINATED = {TERMINATED, INTERRUPTED, -signal.SIGTERM, -signal.SIGINT}
"""Exit codes of a stop before there was anything to save."""
_KILLED = {KILLED, -signal.SIGKILL}


@dataclass(frozen=True, kw_only=True)
class JobView:
    """The current state of a job."""

    job: JobRecord
    folder: Path
    state: State
    exit_code: int | None
    """Exit code of the last attempt, once it is over."""
    reason: Problem | None
    """The executor's problem, or the problem for which it could not be started."""
    output: Path | None
    """The trainer's output_dir, if it is on this machine."""
    run: RunRecord | None
    """The trainer's own record of the run."""

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Return the problems that ended it: the trainer's, else the executor's. Empty if it finished or was stopped."""
        if self.state not in (State.FAILED, State.KILLED, State.STOPPED):
            return ()
        if self.run is not None and self.run.state == "failed" and self.run.problems:
            return self.run.problems
        return () if self.reason is None else (self.reason,)

    @property
    def elapsed_seconds(self) -> float | None:
        """Return the time of the last try so far, or in all; None before it has begun."""
        if self.run is None:
            return None
        return (
            (self.run.ended or (self.run.updated if self.state.is_over else datetime.now(UTC))) - self.run.started
        ).total_seconds()

    @property
    def share(self) -> float:
        """Return the share of steps made, 0 to 1."""
        return self.run.step / self.run.total_steps if self.run is not None and self.run.total_steps else 0.0


def state_of(job: JobRecord, status: ExecutorStatus) -> State:
    """Return the state of a job whose executor reports this status."""
    if job.refused is not None:
        return State.FAILED
    if not job.has_begun:
        return State.QUEUED if job.desired == "run" else State.STOPPED
    if status.is_alive:
        if job.desired == "stop":
            return State.STOPPING
        return State.QUEUED if status.is_waiting else State.RUNNING
    match status.exit_code:
        case 0:
            return State.FINISHED
        case int(code) if code == Outcome.PREEMPTED or code in _TERMINATED:
            return State.STOPPED
        case None:
            return State.STOPPED if job.desired == "stop" else State.KILLED
        case int(code) if code in _KILLED:
            return State.STOPPED if job.desired == "stop" else State.KILLED
    return State.FAILED
