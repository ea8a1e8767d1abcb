"""Where trainings run. This machine is here; a cluster is in ``studio.cluster_place``. No torch.

A process is started in a session of its own, and so outlives the studio. Its exit code is written to a file by the shell
above it: whoever looks later, be it a studio that was started anew, finds it there.
"""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil

from longcat.errors import DataError, StorageError
from studio.job import CONFIG_FILE, EXIT_FILE, LOG_FILE, OUTPUT, Job, Process
from trainer.config import TrainConfig
from trainer.run_record import MetricsLine, RunRecord, read_metrics, read_run

_SHELL = """trap : TERM INT HUP
"$@"
printf %s $? > "$0.part" && mv "$0.part" "$0"
"""
"""Waits for the trainer, also when the whole group is told to stop, and notes its exit code."""
_SAME_START_SECONDS = 1.0
_TAIL_BYTES = 256 * 2**10


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a place says of a job that was started there."""

    is_alive: bool
    is_waiting: bool = False
    """Alive, but the place has not begun with it."""
    exit_code: int | None = None
    """Once it is over; None if nobody noted it: it was killed."""
    reason: str | None = None
    """What the place has to say: why a pod waits, what killed it."""


class Place(Protocol):
    """Where jobs run. Methods raise ``StorageError`` or ``UserError`` if the place cannot be asked or refuses."""

    def options(self, config: TrainConfig, folder: Path) -> dict[str, Any]:
        """``config.json`` of a job in that directory, as it has to be for this place."""

    def start(self, job: Job, folder: Path) -> Job:
        """Start a try; the record with where it runs."""

    def look(self, job: Job, folder: Path) -> Look:
        """How a job that was started is."""

    def stop(self, job: Job, folder: Path, *, at_once: bool) -> None:
        """Tell it to save and stop; ``at_once`` does not wait for that."""

    def log_tail(self, job: Job, folder: Path, lines: int) -> str:
        """The end of what it printed."""

    def output(self, job: Job, folder: Path) -> Path | None:
        """The trainer's output_dir as seen from here; None if it cannot be seen."""

    def run(self, job: Job, folder: Path) -> RunRecord | None:
        """What the trainer says of itself; None before it has begun."""

    def metrics(self, job: Job, folder: Path, after_step: int) -> list[MetricsLine]:
        """The steps beyond one."""

    def forget(self, job: Job, folder: Path) -> None:
        """Remove what it left outside the job's directory."""


class LocalPlace:
    """The machine that the studio runs on."""

    def __init__(self, *, cache: Path, adapters: str) -> None:
        """``cache``: for latents and embeddings of all trainings. ``adapters``: where they publish by default."""
        self._cache, self._adapters = cache, adapters
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        """Started by this studio: they have to be waited for, or they stay as zombies."""

    def options(self, config: TrainConfig, folder: Path) -> dict[str, Any]:
        """Absolute paths, a shared cache, resumable, published. What is at its default is left out."""
        said = config.model_dump(mode="json", exclude_defaults=True)
        for name in ("instance_data_dir", "init_lora", "user_prompt_library"):
            if name in said:
                said[name] = _absolute(said[name])
        for dataset in said.get("data_backend_config", ()):
            if "instance_data_dir" in dataset:
                dataset["instance_data_dir"] = _absolute(dataset["instance_data_dir"])
        return said | {
            "output_dir": str(folder / OUTPUT),
            "cache_dir": str(self._cache),
            "resume_from_checkpoint": "latest",
            "publish_to": config.publish_to or self._adapters,
        }

    def start(self, job: Job, folder: Path) -> Job:
        """A shell with a trainer below it, in a session of their own."""
        (folder / EXIT_FILE).unlink(missing_ok=True)
        trainer = [
            sys.executable, "-m", "lithograph", "train", "--log-format", "text", "--config", str(folder / CONFIG_FILE),
        ]  # fmt: skip
        command = ["sh", "-c", _SHELL, str(folder / EXIT_FILE), *trainer]
        try:
            with (folder / LOG_FILE).open("ab") as log:
                child = subprocess.Popen(  # noqa: S603
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                )
        except OSError as error:
            raise StorageError(f"job {job.id} cannot be started: {error}; check memory, processes and disk") from error
        self._children[child.pid] = child
        started = psutil.Process(child.pid).create_time()
        return job.model_copy(update={"process": Process(pid=child.pid, started=started), "tries": job.tries + 1})

    def look(self, job: Job, folder: Path) -> Look:
        """Alive, or how it ended."""
        self._reap()
        if job.process is not None and _is_alive(job.process):
            return Look(is_alive=True)
        try:
            return Look(is_alive=False, exit_code=int((folder / EXIT_FILE).read_text()))
        except (FileNotFoundError, ValueError):
            return Look(is_alive=False)

    def stop(self, job: Job, folder: Path, *, at_once: bool) -> None:  # noqa: ARG002
        """SIGTERM to the session, or SIGKILL."""
        if job.process is not None and _is_alive(job.process):
            with suppress(ProcessLookupError):
                os.killpg(job.process.pid, signal.SIGKILL if at_once else signal.SIGTERM)

    def log_tail(self, job: Job, folder: Path, lines: int) -> str:  # noqa: ARG002
        """From the log file."""
        return tail(folder / LOG_FILE, lines)

    def output(self, job: Job, folder: Path) -> Path | None:  # noqa: ARG002
        """In the job's directory."""
        return folder / OUTPUT

    def run(self, job: Job, folder: Path) -> RunRecord | None:  # noqa: ARG002
        """From ``run.json``."""
        return run_in(folder / OUTPUT)

    def metrics(self, job: Job, folder: Path, after_step: int) -> list[MetricsLine]:  # noqa: ARG002
        """From ``metrics.jsonl``."""
        return steps_in(folder / OUTPUT, after_step)

    def forget(self, job: Job, folder: Path) -> None:
        """Nothing is elsewhere."""

    def _reap(self) -> None:
        for pid, child in list(self._children.items()):
            if child.poll() is not None:
                del self._children[pid]


def run_in(output: Path) -> RunRecord | None:
    """The run of an output_dir; None if it has not begun, or its file is of another version."""
    try:
        return read_run(output)
    except DataError:
        return None


def steps_in(output: Path, after_step: int) -> list[MetricsLine]:
    """Its steps beyond one; a damaged line, as a power cut leaves, is where they end."""
    lines = []
    with suppress(DataError):
        for line in read_metrics(output, after_step):
            lines.append(line)  # noqa: PERF402 - those before the damage are kept
    return lines


def tail(path: Path, lines: int) -> str:
    """The last lines of a file; empty if there is none."""
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - _TAIL_BYTES))
            text = stream.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def _absolute(path: str) -> str:
    return path if path.startswith("s3://") else str(Path(path).expanduser().absolute())


def _is_alive(process: Process) -> bool:
    try:
        found = psutil.Process(process.pid)
        is_same = abs(found.create_time() - process.started) < _SAME_START_SECONDS
        return bool(is_same and found.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
