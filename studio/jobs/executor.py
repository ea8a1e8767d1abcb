"""The interface of an executor of trainings, and the one of this machine. No torch.

A training runs in a session of its own, and so outlives the studio. A shell above it writes its exit code to a file, which a
studio that is started later reads.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil
from typing_extensions import override

from longcat.errors import ConfigError, DataError, StorageError
from longcat.problem import Problem, reason_of
from longcat.process.identity import is_process, started_after_boot
from longcat.process.parent import PARENT_OPTION
from studio.jobs.record import CONFIG_FILE, EXIT_FILE, LOG_FILE, OUTPUT, JobRecord, Process
from studio.training.boundary import Boundary
from trainer.config.options import TrainConfig
from trainer.config.reading.file import load_config
from trainer.record.run_file import MetricsLine, RunRecord, read_metrics, read_run

_SHELL = f"""trap : TERM INT HUP
"$1" -P -m lithograph {PARENT_OPTION} $$ train --log-format json --config "$2"
printf %s $? > "$0.part" && mv "$0.part" "$0"
"""
"""Waits for the trainer, also while the group receives a signal, and records its exit code; the trainer stops without it."""
_TAIL_BYTES = 256 * 2**10


@dataclass(frozen=True, kw_only=True)
class ExecutorStatus:
    """Status of a started job, as its executor reports it."""

    is_alive: bool
    is_waiting: bool = False
    """Alive, but not started yet by the executor, such as a pending pod."""
    exit_code: int | None = None
    """Exit code once it is over; None if none was recorded, because it was killed."""
    reason: Problem | None = None
    """The executor's own problem, such as the reason for which a pod is pending or was killed."""


class Executor(Protocol):
    """An executor of jobs. Methods raise ``StorageError`` or ``UserError`` if it cannot be reached or denies the request."""

    def options(self, config: TrainConfig, folder: Path) -> dict[str, Any]:
        """Return the ``config.json`` of a job in that directory, adapted to this executor."""

    def start(self, job: JobRecord, folder: Path) -> JobRecord:
        """Start an attempt; return the record with its process or Job."""

    def status(self, job: JobRecord, folder: Path) -> ExecutorStatus:
        """Return the status of a started job."""

    def stop(self, job: JobRecord, folder: Path, *, at_once: bool) -> None:
        """Request a checkpoint and a stop; ``at_once`` kills the job instead."""

    def log_tail(self, job: JobRecord, folder: Path, lines: int) -> str:
        """Return the last lines of its log."""

    def output(self, job: JobRecord, folder: Path) -> Path | None:
        """Return the trainer's output_dir on this machine; None if it is not mounted."""

    def run(self, job: JobRecord, folder: Path) -> RunRecord | None:
        """Return the run record of the trainer; None before it exists."""

    def metrics(self, job: JobRecord, folder: Path, after_step: int) -> list[MetricsLine]:
        """Return the metrics after a step."""

    def discard(self, job: JobRecord, folder: Path) -> None:
        """Delete its leftovers outside the job's directory."""


class LocalExecutor(Executor):
    """The machine that the studio runs on."""

    def __init__(self, *, cache: Path, adapters: str, boundary: Boundary) -> None:
        """``cache``: directory of latents and embeddings of all trainings. ``adapters``: default URI to publish to."""
        self._cache, self._adapters, self._boundary = cache, adapters, boundary
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        """Processes of this studio, which must be waited for or they remain as zombies."""

    def options(self, config: TrainConfig, folder: Path) -> dict[str, Any]:
        """Return options with absolute paths, the shared cache, resuming and publishing; defaults are left out."""
        options = config.model_dump(mode="json", exclude_defaults=True)
        for name in ("instance_data_dir", "init_lora", "user_prompt_library"):
            if name in options:
                options[name] = _absolute(options[name])
        for dataset in options.get("data_backend_config", ()):
            if "instance_data_dir" in dataset:
                dataset["instance_data_dir"] = _absolute(dataset["instance_data_dir"])
        for given in options.get("validation_input", ()):
            given["path"] = _absolute(given["path"])
        return options | {
            "output_dir": str(folder / OUTPUT),
            "cache_dir": str(self._cache),
            "resume_from_checkpoint": "latest",
            "publish_to": config.publish_to or self._adapters,
        }

    def start(self, job: JobRecord, folder: Path) -> JobRecord:
        """Start a shell with a trainer below it, in a session of their own. Raises ``ConfigError`` beyond the boundary."""
        self._check(folder)
        (folder / EXIT_FILE).unlink(missing_ok=True)
        command = ["sh", "-c", _SHELL, str(folder / EXIT_FILE), sys.executable, str(folder / CONFIG_FILE)]
        try:
            with (folder / LOG_FILE).open("ab") as log:
                child = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                )
        except OSError as error:
            raise StorageError(
                "job_not_started", "cannot be started: {reason}", remedy="check memory, processes and disk",
                field="job", value=job.id, reason=reason_of(error),
            ) from error  # fmt: skip
        self._children[child.pid] = child
        process = Process(pid=child.pid, started=started_after_boot(child.pid))
        return job.model_copy(update={"process": process, "tries": job.tries + 1})

    def _check(self, folder: Path) -> None:
        """Check the job against the boundary once more: links may have changed since it was submitted."""
        config, _ = load_config(folder / CONFIG_FILE, {})
        if problems := self._boundary.problems(config, here=True):
            raise ConfigError.of(problems)

    def status(self, job: JobRecord, folder: Path) -> ExecutorStatus:
        """Return whether it is alive, or its exit code."""
        self._reap()
        if job.process is not None and _is_alive(job.process):
            return ExecutorStatus(is_alive=True)
        try:
            return ExecutorStatus(is_alive=False, exit_code=int((folder / EXIT_FILE).read_text()))
        except (FileNotFoundError, ValueError):
            return ExecutorStatus(is_alive=job.process is not None and _outlives_shell(job.process, folder))

    @override
    def stop(self, job: JobRecord, folder: Path, *, at_once: bool) -> None:
        """Send SIGTERM to the session, or SIGKILL."""
        if job.process is not None and (_is_alive(job.process) or _outlives_shell(job.process, folder)):
            with suppress(ProcessLookupError):
                os.killpg(job.process.pid, signal.SIGKILL if at_once else signal.SIGTERM)

    @override
    def log_tail(self, job: JobRecord, folder: Path, lines: int) -> str:
        """Return the last lines of the log file."""
        return tail(folder / LOG_FILE, lines)

    @override
    def output(self, job: JobRecord, folder: Path) -> Path | None:
        """Return the output directory below the job's."""
        return folder / OUTPUT

    @override
    def run(self, job: JobRecord, folder: Path) -> RunRecord | None:
        """Return the run record from ``run.json``."""
        return run_in(folder / OUTPUT)

    @override
    def metrics(self, job: JobRecord, folder: Path, after_step: int) -> list[MetricsLine]:
        """Return the steps from ``metrics.jsonl``."""
        return steps_in(folder / OUTPUT, after_step)

    def discard(self, job: JobRecord, folder: Path) -> None:
        """Do nothing: all files are in the job's directory."""

    def _reap(self) -> None:
        for pid, child in list(self._children.items()):
            if child.poll() is not None:
                del self._children[pid]


def run_in(output: Path) -> RunRecord | None:
    """Return the run of an output_dir; None before it has begun, or if another version wrote the file."""
    try:
        return read_run(output)
    except DataError:
        return None


def steps_in(output: Path, after_step: int) -> list[MetricsLine]:
    """Return the metrics after a step, up to a line damaged by a power cut."""
    return list(_before_damage(read_metrics(output, after_step)))


def _before_damage(lines: Iterator[MetricsLine]) -> Iterator[MetricsLine]:
    with suppress(DataError):
        yield from lines


def tail(path: Path, lines: int) -> str:
    """Return the last lines of a file; empty if it does not exist."""
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
    with suppress(psutil.NoSuchProcess):
        is_same = is_process(process.pid, process.started)
        return is_same and psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE
    return False


def _outlives_shell(shell: Process, folder: Path) -> bool:
    """Return True while a trainer whose shell was killed still saves, at most a minute: no other may start meanwhile."""
    config = str(folder / CONFIG_FILE)
    for found in psutil.process_iter(["cmdline"]):
        with suppress(ProcessLookupError, PermissionError):
            if config in (found.info["cmdline"] or ()) and os.getpgid(found.pid) == shell.pid:
                return True
    return False
