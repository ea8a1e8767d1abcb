"""The directories of one run: its metrics, its downloads and its sockets. Directories of killed runs are removed.

A run holds a lock on its directories for as long as one of its main and HTTP processes lives, so that no other run removes
them; systemd-tmpfiles heeds such locks, too. This module must not import prometheus_client, which reads the variable once.
"""

import contextlib
import fcntl
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from longcat.errors import ConfigError
from longcat.storage.disk import writing

METRICS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
LOCK_FILE = "counts.lock"
"""Lock file in the directory of metrics, held while counts move from one file to another."""
_PREFIX = "lithograph-run-"
_STARTING_SECONDS = 5.0
"""Time that another server has to lock its new directory."""
_MOST_SOCKET_BYTES = 107 if sys.platform == "linux" else 103
"""Longest path of a socket in bytes, from ``sockaddr_un``."""
_SOCKET = f"/{_PREFIX}00000000/listener-00000000"
"""The path below the temporary directory of a socket between two processes, as ``multiprocessing`` names it."""
_VALUES = re.compile(r"(counter|gauge_[a-z]+|histogram|summary)_[0-9]+\.(db|partial)")


@contextlib.contextmanager
def run_folder(given: str | None, *, temporary: str | None = None) -> Iterator[tuple[Path, Path]]:
    """Create the directory of this run, yield it with the directory of its metrics, and remove it at the end.

    ``given``, an operator's ``PROMETHEUS_MULTIPROC_DIR``, is used for metrics, and cleared of the files of earlier runs.
    ``temporary``, an operator's ``TMPDIR``, is never replaced by another directory, as Python does if it cannot be written:
    ``/tmp`` may be in memory, and too small for downloads.

    Raises ``StorageError`` if a directory cannot be written, and ``ConfigError`` if another server uses that of metrics, if
    there is no temporary directory, or if its path is too long for the sockets of the server's processes.
    """
    parent = Path(temporary).absolute() if temporary else _temporary_directory()
    _check_length(parent)
    _remove_abandoned(parent)
    with contextlib.ExitStack() as stack:
        with writing(parent, field="TMPDIR"):
            created = tempfile.TemporaryDirectory(prefix=_PREFIX, dir=parent, ignore_cleanup_errors=True)
        folder = Path(stack.enter_context(created))
        stack.enter_context(_lock(folder))
        stack.enter_context(_sockets_in(folder))
        if given:
            metrics = Path(given)
            stack.enter_context(_taken(metrics))
        else:
            metrics = folder / "metrics"
        with writing(metrics):
            metrics.mkdir(exist_ok=True)
            (metrics / LOCK_FILE).touch()
        yield folder, metrics


def _temporary_directory() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise ConfigError(
            "temporary_directory_missing",
            "no temporary directory can be written: {reason}",
            remedy="free space on its disk, or set TMPDIR to a directory that can be written",
            field="TMPDIR",
            reason=error.strerror,
        ) from error


def _check_length(parent: Path) -> None:
    most = _MOST_SOCKET_BYTES - len(_SOCKET)
    if (length := len(os.fsencode(parent))) > most:
        raise ConfigError(
            "temporary_path_too_long",
            "{length} bytes are too long for the sockets between the processes of a server; {most} fit",
            remedy="set TMPDIR to a directory with a shorter path, such as /tmp",
            field="TMPDIR",
            value=str(parent),
            length=length,
            most=most,
        )


@contextlib.contextmanager
def _taken(metrics: Path) -> Iterator[None]:
    """Reserve the operator's directory for this run: counts of other runs would be added to its own."""
    with writing(metrics, field=METRICS_VARIABLE):
        metrics.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_lock(metrics))
        except BlockingIOError as error:
            raise ConfigError(
                "metrics_directory_in_use",
                "another server keeps its metrics there",
                remedy="give each server a directory of its own, or leave it out",
                field=METRICS_VARIABLE,
                value=str(metrics),
            ) from error
        with writing(metrics, field=METRICS_VARIABLE):
            for path in metrics.iterdir():
                if _VALUES.fullmatch(path.name):
                    path.unlink()
        yield


@contextlib.contextmanager
def _sockets_in(folder: Path) -> Iterator[None]:
    """Have ``multiprocessing`` put sockets there, also those of child processes. Its own directory outlives a killed run."""
    settings: dict[str, object] = vars(multiprocessing.current_process())[
        "_config"
    ]  # the only way; children inherit it
    before = settings.get("tempdir")
    settings["tempdir"] = str(folder)
    try:
        yield
    finally:
        settings["tempdir"] = before


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a directory. Raises ``BlockingIOError`` if another process holds it."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _remove_abandoned(parent: Path) -> None:
    """Remove the directories of killed runs, whose downloads would fill the disk."""
    for folder in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            status = folder.lstat()
            if status.st_uid == os.geteuid() and time.time() - status.st_mtime > _STARTING_SECONDS:
                with _lock(folder):
                    shutil.rmtree(folder, ignore_errors=True)
