"""The errors of files and batches."""

from longcat.errors import UserError
from service.http.error_responses import NotFoundError


class BatchesNotOfferedError(UserError):
    """The server has no storage for files and batches."""

    code = "no_jobs_storage"

    def __init__(self) -> None:
        super().__init__(
            "no_jobs_storage",
            "this server keeps no files and batches: it has no storage for jobs",
            remedy="start it with --jobs-storage file:///directory or s3://bucket/prefix",
        )


class BatchConflictError(UserError):
    """The state of a file or a batch does not allow the request."""

    code = "conflict"


def unknown_file(file_id: str, *, field: str = "file_id") -> NotFoundError:
    """Return the error of a file that does not exist, or belongs to another key."""
    return NotFoundError(
        "unknown_file",
        "no such file: it never existed, has expired, or was deleted",
        remedy="upload it with POST /v1/files",
        field=field,
        value=file_id,
    )


def unknown_batch(batch_id: str, *, field: str = "batch_id") -> NotFoundError:
    """Return the error of a batch that does not exist, or belongs to another key."""
    return NotFoundError(
        "unknown_batch",
        "no such batch: it never existed, or has expired",
        remedy="GET /v1/batches lists those of this key",
        field=field,
        value=batch_id,
    )
