"""Errors of writing to a disk, with one of its own for a full disk. No torch."""

import errno
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from longcat.errors import DiskFullError, StorageError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@contextmanager
def writing(path: Path, *, field: str = "file") -> Iterator[None]:
    """Convert the errors of writing to a path. Raises ``StorageError``, for a full disk ``DiskFullError``."""
    try:
        yield
    except OSError as error:
        raise not_written(path, error, field=field) from error


@contextmanager
def needing_room(path: Path) -> Iterator[None]:
    """Convert the error of a full disk alone. Raises ``DiskFullError``."""
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise disk_full(path) from error
        raise


def not_written(path: Path, error: OSError, *, field: str = "file") -> StorageError:
    """Return the error of writing to a path."""
    if is_disk_full(error):
        return disk_full(path, field=field)
    return StorageError(
        "file_not_written",
        "cannot be written: {reason}",
        remedy="check the path, its permissions and the disk",
        field=field,
        value=str(path),
        reason=error.strerror or str(error),
    )


def is_disk_full(error: BaseException) -> bool:
    """Return True if an error reports a full disk or a used-up quota."""
    return isinstance(error, OSError) and error.errno in _FULL


def disk_full(path: Path | None = None, *, field: str = "file") -> DiskFullError:
    """Return the error of a full disk; without a path, of that of temporary files."""
    path = Path(tempfile.gettempdir()) if path is None else path
    return DiskFullError(
        "disk_full",
        "cannot be written: its disk is full, with {free_mib} MiB free",
        remedy="free space on that disk, or choose a directory on another (for temporary files with TMPDIR)",
        field=field,
        value=str(path),
        free_mib=round(free_bytes(path) / 2**20),
    )


def path_of(error: BaseException) -> Path | None:
    """Return the file that an ``OSError`` names; None if it names none."""
    name = getattr(error, "filename", None)
    return Path(name) if isinstance(name, str) else None


def free_bytes(path: Path) -> int:
    """Return the free space on the disk of a path, which need not exist yet; 0 if it is not known."""
    for folder in (path, *path.absolute().parents):
        with suppress(OSError):
            return shutil.disk_usage(folder).free
    return 0
