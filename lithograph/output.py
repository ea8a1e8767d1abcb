"""The file of ``--output``."""

from pathlib import Path

from longcat.errors import LithographError, UserError
from longcat.problem import reason_of
from longcat.storage.disk import disk_full, is_disk_full


def output_error(path: Path, error: Exception) -> LithographError:
    """Return the error of writing the file of ``--output``."""
    if is_disk_full(error):
        return disk_full(path, field="--output")
    return UserError(
        "output_not_writable",
        "cannot be written ({reason})",
        remedy="give another file",
        field="--output",
        value=str(path),
        reason=reason_of(error),
    )
