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
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from longcat.errors import ClusterError, ConfigError, DataError, LithographError, StorageError
from longcat.logs import tell
from studio.job import CONFIG_FILE, JOB_FILE, Job, PlaceName, State, job_id, read_job, write_job
from studio.places import Look, Place
from trainer.atomic import write_atomically
from trainer.config import TrainConfig
from trainer.run_record import MetricsLine, RunRecord

TICK_SECONDS = 1.0
_SUSPENDED_SECONDS = 0.2
"""Between looks at whether a training has saved."""
PREEMPTED = 75
"""The trainer's exit code when it was told to stop and has saved."""
_TERMINATED = {143, 130, -15, -2}
"""Told to stop before it had anything to save."""
_KILLED = {137, -9}
_ID = re.compile(r"^[0-9a-z][0-9a-z-]*$")
_log = logging.getLogger("lithograph.studio")


@dataclass(frozen=True, kw_only=True)
class JobView:
    """A job as it stands."""

    job: Job
    folder: Path
    state: State
    exit_code: int | None
    """Of the last try, once it is over."""
    reason: str | None
    """What its place says beside it, or why it could not be started."""
    output: Path | None
    """The trainer's output_dir, if it can be seen from here."""
    run: RunRecord | None
    """What the trainer says of itself."""

    @property
    def message(self) -> str | None:
        """What went wrong, in the trainer's words."""
        if self.state not in (State.FAILED, State.KILLED):
            return None
        said = self.run.message if self.run is not None and self.run.state == "failed" else None
        return said or self.reason

    @property
    def share(self) -> float:
        """Of the steps, 0..1."""
        return self.run.step / self.run.total_steps if self.run is not None and self.run.total_steps else 0.0


class Jobs:
    """The jobs below ``<home>/jobs``. One studio at a time may look after them."""

    def __init__(self, folder: Path, places: Mapping[PlaceName, Place], *, parallel: int = 1) -> None:
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
        """Where jobs can run."""
        return tuple(self._places)

    def submit(self, config: TrainConfig, *, name: str, place: PlaceName = "local") -> Job:
        """Queue a training. Raises ``StorageError``; ``ConfigError`` if the place is unknown or cannot run this."""
        now = datetime.now(UTC)
        identity = job_id(name, now, secrets.token_hex(2))
        job = Job(id=identity, name=name, place=place, created=now, queued=now)
        options = self._place(place).options(config, self.folder / identity)
        draft = self.folder / f".{identity}"
        try:
            draft.mkdir()
            write_atomically(draft / CONFIG_FILE, (json.dumps(options, ensure_ascii=False, indent=2) + "\n").encode())
            write_job(draft, job)
            draft.rename(self.folder / identity)
        except OSError as error:
            raise StorageError(f"{self.folder} cannot be written: {error.strerror or error}; check the disk") from error
        tell(_log, "job_queued", id=identity, place=place)
        return job

    def list(self) -> list[JobView]:
        """All of them, the newest first."""
        found = [entry.name for entry in self.folder.iterdir() if (entry / JOB_FILE).exists() and _ID.match(entry.name)]
        return [self.get(identity) for identity in sorted(found, reverse=True)]

    def get(self, identity: str) -> JobView:
        """One of them. Raises ``DataError`` if there is none of that id."""
        job, folder = self._read(identity)
        place = self._place(job.place)
        output = place.output(job, folder)
        look, reason = self._look(job, folder)
        run = place.run(job, folder) if job.has_begun or job.tries else None
        state = _state(job, look)
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
        """What it was submitted with."""
        _, folder = self._read(identity)
        config: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_bytes())
        return config

    def log_tail(self, identity: str, lines: int = 200) -> str:
        """The end of its log."""
        job, folder = self._read(identity)
        return self._place(job.place).log_tail(job, folder, lines)

    def metrics(self, identity: str, after_step: int) -> Sequence[MetricsLine]:
        """Its steps beyond one."""
        job, folder = self._read(identity)
        return self._place(job.place).metrics(job, folder, after_step)

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
        """Queue it again: it goes on from its last checkpoint. Raises ``ConfigError`` if there is nothing to resume."""
        with self._lock:
            view = self.get(identity)
            if not view.state.can_resume:
                raise ConfigError(
                    f"job {identity} is {view.state}: only one that stopped, failed or was killed goes on"
                )
            again = {"wanted": "run", "process": None, "remote": None, "refused": None, "queued": datetime.now(UTC)}
            write_job(view.folder, view.job.model_copy(update=again))

    def delete(self, identity: str) -> None:
        """Remove it with all that it made; what it published stays. Raises ``ConfigError`` while it is not over."""
        with self._lock:
            view = self.get(identity)
            if not view.state.is_over:
                raise ConfigError(f"job {identity} is {view.state}: stop it first")
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
            tell(_log, "job_started", id=job.id, place=job.place)
        except LithographError as error:
            tell(_log, "job_refused", logging.WARNING, id=job.id, reason=str(error))
            write_job(view.folder, job.model_copy(update={"refused": str(error)}))

    def _look(self, job: Job, folder: Path) -> tuple[Look, str | None]:
        if not job.has_begun:
            return Look(is_alive=False), job.refused
        try:
            look = self._place(job.place).look(job, folder)
        except (StorageError, ClusterError) as error:  # the place cannot be asked: nothing is known to have changed
            return Look(is_alive=True), str(error)
        return look, look.reason

    def _read(self, identity: str) -> tuple[Job, Path]:
        folder = self.folder / identity
        if not _ID.match(identity) or not folder.is_dir():
            raise DataError(f"job {identity!r} is not there; it may have been deleted")
        return read_job(folder), folder

    def _place(self, name: PlaceName) -> Place:
        if name not in self._places:
            raise ConfigError(f"jobs cannot run in {name!r} here; they can in {', '.join(self._places)}")
        return self._places[name]

    def _tick_until_over(self) -> None:
        while not self._over.wait(TICK_SECONDS):
            try:
                self.tick()
            except (LithographError, OSError) as error:  # a full disk: the queue waits, and the studio stays
                tell(_log, "jobs_stuck", logging.ERROR, reason=str(error))


def _state(job: Job, look: Look) -> State:
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
