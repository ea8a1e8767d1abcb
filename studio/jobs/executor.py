"""Executors of trainings: this machine, here; a cluster in ``studio.jobs.cluster_executor``. No torch.

A process is started in a session of its own, and so outlives the studio. A shell above it writes its exit code to a file,
which a studio that is started later reads.
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
from longcat.parent import PARENT_OPTION
from longcat.problem import Problem, reason_of
from longcat.process_identity import is_process, started_after_boot
from studio.jobs.record import CONFIG_FILE, EXIT_FILE, LOG_FILE, OUTPUT, JobRecord, Process
from studio.training.boundary import Boundary
from trainer.config.file import load_config
from trainer.config.options import TrainConfig
from trainer.record.run_file import MetricsLine, RunRecord, read_metrics, read_run

_SHELL = f"""trap : TERM INT HUP
"$1" -P -m lithograph {PARENT_OPTION} $$ train --log-format text --config "$2"
printf %s $? > "$0.part" && mv "$0.part" "$0"
"""
"""Waits for the trainer, also when the whole group gets a signal, and notes its exit code; the trainer stops without it."""
_TAIL_BYTES = 256 * 2**10


@dataclass(frozen=True, kw_only=True)
class ExecutorStatus:
    """Status of a started job, as its executor reports it."""

    is_alive: bool
    is_waiting: bool = False
    """Alive, but the place has not begun with it."""
    exit_code: int | None = None
    """Once it is over; None if nobody noted it: it was killed."""
    reason: Problem | None = None
    """The executor's own reason: why a pod waits, what killed it."""


class Executor(Protocol):
    """An executor of jobs. Methods raise ``StorageError`` or ``UserError`` if it cannot be reached or denies the request."""

    def options(self, config: TrainConfig, folder: Path) -> dict[str, Any]:
        """``config.json`` of a job in that directory, as it has to be for this place."""

    def start(self, job: JobRecord, folder: Path) -> JobRecord:
        """Start a try; the record with where it runs."""

    def look(self, job: JobRecord, folder: Path) -> ExecutorStatus:
        """Return the status of a started job."""

    def stop(self, job: JobRecord, folder: Path, *, at_once: bool) -> None:
        """Tell it to save and stop; ``at_once`` does not wait for that."""

    def log_tail(self, job: JobRecord, folder: Path, lines: int) -> str:
        """The end of what it printed."""

    def output(self, job: JobRecord, folder: Path) -> Path | None:
        """The trainer's output_dir as seen from here; None if it cannot be seen."""

    def run(self, job: JobRecord, folder: Path) -> RunRecord | None:
        """Return the run record of the trainer; None before it exists."""

    def metrics(self, job: JobRecord, folder: Path, after_step: int) -> list[MetricsLine]:
        """The steps beyond one."""

    def forget(self, job: JobRecord, folder: Path) -> None:
        """Remove what it left outside the job's directory."""


class LocalExecutor(Executor):
    """The machine that the studio runs on."""

    def __init__(self, *, cache: Path, adapters: str, boundary: Boundary) -> None:
        """``cache``: for latents and embeddings of all trainings. ``adapters``: where they publish by default."""
        self._cache, self._adapters, self._boundary = cache, adapters, boundary
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
        """Check what the job may read and call once more: links may have changed since it was submitted."""
        config, _ = load_config(folder / CONFIG_FILE, {})
        if problems := self._boundary.problems(config, here=True):
            raise ConfigError.of(problems)

    def look(self, job: JobRecord, folder: Path) -> ExecutorStatus:
        """Alive, or how it ended."""
        self._reap()
        if job.process is not None and _is_alive(job.process):
            return ExecutorStatus(is_alive=True)
        try:
            return ExecutorStatus(is_alive=False, exit_code=int((folder / EXIT_FILE).read_text()))
        except (FileNotFoundError, ValueError):
            return ExecutorStatus(is_alive=job.process is not None and _outlives_shell(job.process, folder))

    @override
    def stop(self, job: JobRecord, folder: Path, *, at_once: bool) -> None:
        """SIGTERM to the session, or SIGKILL."""
        if job.process is not None and (_is_alive(job.process) or _outlives_shell(job.process, folder)):
            with suppress(ProcessLookupError):
                os.killpg(job.process.pid, signal.SIGKILL if at_once else signal.SIGTERM)

    @override
    def log_tail(self, job: JobRecord, folder: Path, lines: int) -> str:
        """From the log file."""
        return tail(folder / LOG_FILE, lines)

    @override
    def output(self, job: JobRecord, folder: Path) -> Path | None:
        """In the job's directory."""
        return folder / OUTPUT

    @override
    def run(self, job: JobRecord, folder: Path) -> RunRecord | None:
        """From ``run.json``."""
        return run_in(folder / OUTPUT)

    @override
    def metrics(self, job: JobRecord, folder: Path, after_step: int) -> list[MetricsLine]:
        """From ``metrics.jsonl``."""
        return steps_in(folder / OUTPUT, after_step)

    def forget(self, job: JobRecord, folder: Path) -> None:
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
    return list(_before_damage(read_metrics(output, after_step)))


def _before_damage(lines: Iterator[MetricsLine]) -> Iterator[MetricsLine]:
    with suppress(DataError):
        yield from lines


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
    with suppress(psutil.NoSuchProcess):
        is_same = is_process(process.pid, process.started)
        return is_same and psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE
    return False


def _outlives_shell(shell: Process, folder: Path) -> bool:
    """Return True while a trainer whose shell was killed saves, for a minute at most: no other may start meanwhile."""
    config = str(folder / CONFIG_FILE)
    for found in psutil.process_iter(["cmdline"]):
        with suppress(ProcessLookupError, PermissionError):
            if config in (found.info["cmdline"] or ()) and os.getpgid(found.pid) == shell.pid:
                return True
    return False
