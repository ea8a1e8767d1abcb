"""The job queue of a studio: submit, start in turn, stop, resume, delete. No torch.

Its whole state is on disk, so that a restarted studio continues from the directory.
"""

import json
import logging
import re
import secrets
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from longcat.errors import (
    ClusterError,
    ConfigError,
    DataError,
    JobError,
    LithographError,
    StorageError,
    UnknownJobError,
)
from longcat.logs import log_event
from longcat.problem import Problem
from longcat.storage.atomic import write_atomically
from longcat.storage.disk import writing
from studio.jobs.executor import Executor, ExecutorStatus
from studio.jobs.job_view import JobView, state_of
from studio.jobs.record import (
    CONFIG_FILE,
    JOB_FILE,
    ExecutorName,
    JobRecord,
    State,
    job_id,
    read_job,
    unreadable_job,
    write_job,
)
from trainer.config.options import TrainConfig
from trainer.record.prompts_file import ChangedPrompts, read_changed_prompts, write_changed_prompts
from trainer.record.run_file import MetricsLine

TICK_SECONDS = 1.0
_SUSPENDED_SECONDS = 0.2
"""Interval of checks while a training saves."""
_ID = re.compile(r"[0-9a-z][0-9a-z-]{0,99}")
_log = logging.getLogger("lithograph.studio")


class JobStateError(JobError):
    """The job's present state does not allow the action; it may have changed since the page was shown."""

    code = "job_state"


class JobQueue:
    """The jobs below ``<home>/jobs``. Only one studio at a time may run the queue."""

    def __init__(self, folder: Path, executors: Mapping[ExecutorName, Executor], *, parallel: int = 1) -> None:
        """``parallel``: number of jobs that run at once on this machine; others are queued."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._executors = dict(executors)
        self._parallel = parallel
        self._lock = threading.RLock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._tick_until_over, name="jobs", daemon=True)

    def start(self) -> None:
        """Start running the queue."""
        self._thread.start()

    def close(self) -> None:
        """Stop running the queue; running jobs continue."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def suspend(self) -> None:
        """Stop the jobs of this machine with a checkpoint and queue them for the next studio. Call it after ``close``."""
        running = [view for view in self.list() if view.job.executor == "local" and view.state is State.RUNNING]
        for view in running:
            self._executor("local").stop(view.job, view.folder, at_once=False)
        for view in running:
            while not (now := self.get(view.job.id).state).is_over:
                time.sleep(_SUSPENDED_SECONDS)
            if now is State.STOPPED:
                self.resume(view.job.id)

    @property
    def executor_names(self) -> tuple[ExecutorName, ...]:
        """Return the names of the executors."""
        return tuple(self._executors)

    def submit(self, config: TrainConfig, *, name: str, executor: ExecutorName = "local") -> JobRecord:
        """Queue a training. Raises ``StorageError``; ``ConfigError`` if the executor is unknown or cannot run it."""
        now = datetime.now(UTC)
        identity = job_id(name, now, secrets.token_hex(2))
        job = JobRecord(id=identity, name=name, executor=executor, created=now, queued=now)
        options = self._executor(executor).options(config, self.folder / identity)
        draft = self.folder / f".{identity}"
        with writing(self.folder, field="jobs"):
            draft.mkdir()
            write_atomically(draft / CONFIG_FILE, (json.dumps(options, ensure_ascii=False, indent=2) + "\n").encode())
            write_job(draft, job)
            draft.rename(self.folder / identity)
        log_event(_log, "job_queued", id=identity, executor=executor)
        return job

    def list(self) -> list[JobView]:
        """Return all jobs, the newest first."""
        found = [
            entry.name for entry in self.folder.iterdir() if (entry / JOB_FILE).exists() and _ID.fullmatch(entry.name)
        ]
        return [self.get(identity) for identity in sorted(found, reverse=True)]

    def get(self, identity: str) -> JobView:
        """Return one job. Raises ``UnknownJobError``."""
        job, folder = self._read(identity)
        status, reason = self._status(job, folder)
        state = state_of(job, status)
        output = run = None
        if (executor := self._executors.get(job.executor)) is not None:
            output = executor.output(job, folder)
            run = executor.run(job, folder) if job.has_begun or job.tries else None
        return JobView(
            job=job,
            folder=folder,
            state=state,
            exit_code=status.exit_code if state.is_over else None,
            reason=reason,
            output=output,
            run=run,
        )

    def config(self, identity: str) -> dict[str, Any]:
        """Return the configuration that a job was submitted with."""
        _, folder = self._read(identity)
        config: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_bytes())
        return config

    def log_tail(self, identity: str, lines: int = 200) -> str:
        """Return the last lines of its log."""
        job, folder = self._read(identity)
        executor = self._executors.get(job.executor)
        return "" if executor is None else executor.log_tail(job, folder, lines)

    def metrics(self, identity: str, after_step: int) -> Sequence[MetricsLine]:
        """Return its metrics after a step."""
        job, folder = self._read(identity)
        executor = self._executors.get(job.executor)
        return () if executor is None else executor.metrics(job, folder, after_step)

    def stop(self, identity: str, *, at_once: bool = False) -> None:
        """Stop a job with a checkpoint, or remove it from the queue. ``at_once``: kill it. No effect once it is over."""
        with self._lock:
            view = self.get(identity)
            if view.state.is_over:
                return
            write_job(view.folder, view.job.model_copy(update={"desired": "stop"}))
            if view.job.has_begun:
                self._executor(view.job.executor).stop(view.job, view.folder, at_once=at_once)

    def resume(self, identity: str) -> None:
        """Queue it again, from its last checkpoint. Raises ``JobStateError``, or ``DataError`` for its record."""
        with self._lock:
            view = self.get(identity)
            if not view.state.can_resume:
                raise JobStateError(
                    "job_not_resumable", "the job is {state}; only one that stopped, failed or was killed can be resumed",
                    field="job", value=identity, state=view.state.word,
                )  # fmt: skip
            read_job(view.folder)  # raises: a record of a later version is not replaced
            again = {"desired": "run", "process": None, "remote": None, "refused": None, "queued": datetime.now(UTC)}
            write_job(view.folder, view.job.model_copy(update=again))

    def delete(self, identity: str) -> None:
        """Delete it with its output; published adapters stay. Raises ``JobStateError`` while it is not over."""
        with self._lock:
            view = self.get(identity)
            if not view.state.is_over:
                raise JobStateError(
                    "job_not_over", "the job is {state}", remedy="stop it first, and wait until it has stopped",
                    field="job", value=identity, state=view.state.word,
                )  # fmt: skip
            self._executor(view.job.executor).discard(view.job, view.folder)
            gone = view.folder.with_name(f".deleted-{identity}")
            view.folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def waiting(self) -> Sequence[JobView]:
        """Return those that have not begun, the next one first."""
        found = [view for view in self.list() if view.state is State.QUEUED and not view.job.has_begun]
        return sorted(found, key=lambda view: (view.job.queued, view.job.id))

    def move(self, identity: str, *, places: int) -> None:
        """Move a waiting job towards the front (negative) or the end of the queue. One that does not wait stays."""
        with self._lock:
            queue = [*self.waiting()]
            index = next((i for i, view in enumerate(queue) if view.job.id == identity), None)
            if index is None:
                return
            target = min(max(index + places, 0), len(queue) - 1)
            times = [view.job.queued for view in queue]
            queue.insert(target, queue.pop(index))
            for view, queued in zip(queue, _increasing(times), strict=True):
                if view.job.queued != queued:
                    write_job(view.folder, view.job.model_copy(update={"queued": queued}))

    def prompts(self, identity: str) -> tuple[str, ...]:
        """Return the prompts of the next validation: changed ones, else the configured ones. Raises ``DataError``."""
        output = self.get(identity).output
        changed = None if output is None else read_changed_prompts(output)
        if changed is not None:
            return changed
        config = self.config(identity)
        first = config.get("validation_prompt")
        return (*((first,) if first else ()), *config.get("validation_prompts", ()))

    def change_prompts(self, identity: str, prompts: ChangedPrompts) -> None:
        """Have the next validations sample other prompts. Raises ``JobStateError`` where the trainer cannot read them."""
        view = self.get(identity)
        if view.output is None or view.state.is_over:
            raise JobStateError(
                "job_prompts_fixed", "the job is {state}, or its directory cannot be seen from here",
                remedy="train again with other validation_prompts", field="job", value=identity, state=view.state.word,
            )  # fmt: skip
        with writing(view.output, field="jobs"):
            view.output.mkdir(parents=True, exist_ok=True)
            write_changed_prompts(view.output, prompts)

    def tick(self) -> None:
        """Start queued jobs, up to the limit."""
        with self._lock:
            views = self.list()
            busy = sum(v.job.executor == "local" and v.job.has_begun and not v.state.is_over for v in views)
            for view in self.waiting():
                if view.job.executor == "local":
                    if busy >= self._parallel:
                        continue
                    busy += 1
                self._start(view)

    def _start(self, view: JobView) -> None:
        job = view.job
        try:
            write_job(view.folder, self._executor(job.executor).start(job, view.folder))
            log_event(_log, "job_started", id=job.id, executor=job.executor)
        except LithographError as error:
            log_event(_log, "job_refused", logging.WARNING, id=job.id, reason=str(error))
            write_job(view.folder, job.model_copy(update={"refused": error.problems[0]}))

    def _status(self, job: JobRecord, folder: Path) -> tuple[ExecutorStatus, Problem | None]:
        if not job.has_begun:
            return ExecutorStatus(is_alive=False), job.refused
        try:
            status = self._executor(job.executor).status(job, folder)
        except (StorageError, ClusterError, ConfigError) as error:  # out of reach: its last known state stands
            return ExecutorStatus(is_alive=True), error.problems[0]
        return status, status.reason

    def _read(self, identity: str) -> tuple[JobRecord, Path]:
        folder = self.folder / identity
        if not _ID.fullmatch(identity) or not folder.is_dir():
            raise UnknownJobError(
                "job_not_in_queue", "no such job; it may have been deleted", field="job", value=identity
            )
        try:
            return read_job(folder), folder
        except DataError as error:  # other jobs are still listed, and run
            return unreadable_job(folder, error.problems[0]), folder

    def _executor(self, name: ExecutorName) -> Executor:
        if name not in self._executors:
            raise ConfigError(
                "executor_unknown", "jobs cannot run there", remedy="give {known}",
                field="executor", value=name, known=", ".join(self._executors),
            )  # fmt: skip
        return self._executors[name]

    def _tick_until_over(self) -> None:
        while not self._over.wait(TICK_SECONDS):
            try:
                self.tick()
            except (LithographError, OSError) as error:  # such as a full disk: the queue retries
                log_event(_log, "jobs_stuck", logging.ERROR, reason=str(error))


def _increasing(times: Sequence[datetime]) -> list[datetime]:
    """Return the times, each later than the one before it: jobs of the same moment can be told apart then."""
    found: list[datetime] = []
    for time_queued in times:
        found.append(max(time_queued, found[-1] + timedelta(microseconds=1)) if found else time_queued)
    return found
