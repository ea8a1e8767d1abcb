"""All jobs of a studio: submitted, queued, started in turn, stopped, resumed, deleted. No torch.

What there is to know is on disk. Whoever reads the directory knows as much as the studio that wrote it.
"""

import json
import logging
import re
import secrets
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
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
    JobRecord,
    PlaceName,
    State,
    job_id,
    read_job,
    unreadable_job,
    write_job,
)
from trainer.config.options import TrainConfig
from trainer.record.run_file import MetricsLine

TICK_SECONDS = 1.0
_SUSPENDED_SECONDS = 0.2
"""Between looks at whether a training has saved."""
_ID = re.compile(r"[0-9a-z][0-9a-z-]{0,99}")
_log = logging.getLogger("lithograph.studio")


class JobStateError(JobError):
    """The job's present state does not allow the action; it may have changed since the page was shown."""

    code = "job_state"


class JobQueue:
    """The jobs below ``<home>/jobs``. One studio at a time may look after them."""

    def __init__(self, folder: Path, places: Mapping[PlaceName, Executor], *, parallel: int = 1) -> None:
        """``parallel``: how many run at once on this machine; the others wait."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._places = dict(places)
        self._parallel = parallel
        self._lock = threading.RLock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._tick_until_over, name="jobs", daemon=True)

    def start(self) -> None:
        """Look after the queue from now on."""
        self._thread.start()

    def close(self) -> None:
        """Stop looking after it; what runs goes on."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def suspend(self) -> None:
        """Have what runs on this machine save and stop, and queue it for the next studio. To be called when closed."""
        running = [view for view in self.list() if view.job.place == "local" and view.state is State.RUNNING]
        for view in running:
            self._place("local").stop(view.job, view.folder, at_once=False)
        for view in running:
            while not (now := self.get(view.job.id).state).is_over:
                time.sleep(_SUSPENDED_SECONDS)
            if now is State.STOPPED:
                self.resume(view.job.id)

    @property
    def place_names(self) -> tuple[PlaceName, ...]:
        """Return the names of the executors."""
        return tuple(self._places)

    def submit(self, config: TrainConfig, *, name: str, place: PlaceName = "local") -> JobRecord:
        """Queue a training. Raises ``StorageError``; ``ConfigError`` if the place is unknown or cannot run this."""
        now = datetime.now(UTC)
        identity = job_id(name, now, secrets.token_hex(2))
        job = JobRecord(id=identity, name=name, place=place, created=now, queued=now)
        options = self._place(place).options(config, self.folder / identity)
        draft = self.folder / f".{identity}"
        with writing(self.folder, field="jobs"):
            draft.mkdir()
            write_atomically(draft / CONFIG_FILE, (json.dumps(options, ensure_ascii=False, indent=2) + "\n").encode())
            write_job(draft, job)
            draft.rename(self.folder / identity)
        log_event(_log, "job_queued", id=identity, place=place)
        return job

    def list(self) -> list[JobView]:
        """All of them, the newest first."""
        found = [
            entry.name for entry in self.folder.iterdir() if (entry / JOB_FILE).exists() and _ID.fullmatch(entry.name)
        ]
        return [self.get(identity) for identity in sorted(found, reverse=True)]

    def get(self, identity: str) -> JobView:
        """One of them. Raises ``UnknownJobError`` if there is none of that id."""
        job, folder = self._read(identity)
        look, reason = self._look(job, folder)
        state = state_of(job, look)
        output = run = None
        if (place := self._places.get(job.place)) is not None:
            output = place.output(job, folder)
            run = place.run(job, folder) if job.has_begun or job.tries else None
        return JobView(
            job=job,
            folder=folder,
            state=state,
            exit_code=look.exit_code if state.is_over else None,
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
        """The end of its log."""
        job, folder = self._read(identity)
        place = self._places.get(job.place)
        return "" if place is None else place.log_tail(job, folder, lines)

    def metrics(self, identity: str, after_step: int) -> Sequence[MetricsLine]:
        """Its steps beyond one."""
        job, folder = self._read(identity)
        place = self._places.get(job.place)
        return () if place is None else place.metrics(job, folder, after_step)

    def stop(self, identity: str, *, at_once: bool = False) -> None:
        """Tell it to save and stop; one that waits is not started. ``at_once``: kill it. One that is over stays as it is."""
        with self._lock:
            view = self.get(identity)
            if view.state.is_over:
                return
            write_job(view.folder, view.job.model_copy(update={"wanted": "stop"}))
            if view.job.has_begun:
                self._place(view.job.place).stop(view.job, view.folder, at_once=at_once)

    def resume(self, identity: str) -> None:
        """Queue it again: it goes on from its last checkpoint. Raises ``JobStateError``, or ``DataError`` for its record."""
        with self._lock:
            view = self.get(identity)
            if not view.state.can_resume:
                raise JobStateError(
                    "job_not_resumable", "the job is {state}; only one that stopped, failed or was killed can be resumed",
                    field="job", value=identity, state=view.state.word,
                )  # fmt: skip
            read_job(view.folder)  # one that cannot be read, as of a later version, is not replaced
            again = {"wanted": "run", "process": None, "remote": None, "refused": None, "queued": datetime.now(UTC)}
            write_job(view.folder, view.job.model_copy(update=again))

    def delete(self, identity: str) -> None:
        """Remove it with all that it made; what it published stays. Raises ``JobStateError`` while it is not over."""
        with self._lock:
            view = self.get(identity)
            if not view.state.is_over:
                raise JobStateError(
                    "job_not_over", "the job is {state}", remedy="stop it first, and wait until it has stopped",
                    field="job", value=identity, state=view.state.word,
                )  # fmt: skip
            self._place(view.job.place).forget(view.job, view.folder)
            gone = view.folder.with_name(f".deleted-{identity}")
            view.folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def tick(self) -> None:
        """Start those that wait, as many as may run."""
        with self._lock:
            views = self.list()
            busy = sum(v.job.place == "local" and v.job.has_begun and not v.state.is_over for v in views)
            waiting = [v for v in views if v.state is State.QUEUED and not v.job.has_begun]
            for view in sorted(waiting, key=lambda waiting: (waiting.job.queued, waiting.job.id)):
                if view.job.place == "local":
                    if busy >= self._parallel:
                        continue
                    busy += 1
                self._start(view)

    def _start(self, view: JobView) -> None:
        job = view.job
        try:
            write_job(view.folder, self._place(job.place).start(job, view.folder))
            log_event(_log, "job_started", id=job.id, place=job.place)
        except LithographError as error:
            log_event(_log, "job_refused", logging.WARNING, id=job.id, reason=str(error))
            write_job(view.folder, job.model_copy(update={"refused": error.problems[0]}))

    def _look(self, job: JobRecord, folder: Path) -> tuple[ExecutorStatus, Problem | None]:
        if not job.has_begun:
            return ExecutorStatus(is_alive=False), job.refused
        try:
            look = self._place(job.place).look(job, folder)
        except (
            StorageError,
            ClusterError,
            ConfigError,
        ) as error:  # the place cannot be asked: nothing is known to have changed
            return ExecutorStatus(is_alive=True), error.problems[0]
        return look, look.reason

    def _read(self, identity: str) -> tuple[JobRecord, Path]:
        folder = self.folder / identity
        if not _ID.fullmatch(identity) or not folder.is_dir():
            raise UnknownJobError(
                "job_not_in_queue", "no such job; it may have been deleted", field="job", value=identity
            )
        try:
            return read_job(folder), folder
        except DataError as error:  # it fails alone: the others are listed, and run
            return unreadable_job(folder, error.problems[0]), folder

    def _place(self, name: PlaceName) -> Executor:
        if name not in self._places:
            raise ConfigError(
                "executor_unknown", "jobs cannot run there", remedy="give {known}",
                field="place", value=name, known=", ".join(self._places),
            )  # fmt: skip
        return self._places[name]

    def _tick_until_over(self) -> None:
        while not self._over.wait(TICK_SECONDS):
            try:
                self.tick()
            except (LithographError, OSError) as error:  # a full disk: the queue waits, and the studio stays
                log_event(_log, "jobs_stuck", logging.ERROR, reason=str(error))
