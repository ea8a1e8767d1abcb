"""The records of files and batches in the storage of jobs.

::

    files/ID             the record of a file       created after its content, removed after it; never changes
    contents/ID          its content                of an output file, the keys of its parts
    batches/ID           the record of a batch      its request, its state and its lease, replaced with compare-and-swap
    batch-lines/ID/…     the results of its lines   created once: ``output/N`` or ``errors/N``, with N from 00000001

An id begins with the time of its creation, so that the order of ids is that of time.
"""

import logging
import re
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from longcat.logs import log_event
from service.http.jobs.batches.schema import (
    OVER,
    BatchError,
    BatchErrors,
    BatchObject,
    BatchStatus,
    Endpoint,
    FileObject,
    Purpose,
    RequestCounts,
)
from service.http.jobs.lasting.calls import StorageCalls

log = logging.getLogger("lithograph")

_LARGEST_RECORD_BYTES = 2**20
_ID = re.compile(r"(file-|batch_)[0-9a-f]{32}")
_TIME_DIGITS = 12


def new_id(prefix: str) -> str:
    """Return an id that nobody can guess, and that sorts behind earlier ones."""
    return f"{prefix}{int(time.time() * 1000):0{_TIME_DIGITS}x}{secrets.token_hex(10)}"


def age_seconds(record_id: str) -> float:
    """Return the time since the creation of an id."""
    return time.time() - int(record_id[-32:][:_TIME_DIGITS], 16) / 1000


class OwnedRecord(BaseModel):
    """A record of one API key."""

    model_config = ConfigDict(frozen=True)

    id: str
    key: str | None
    """Name of the key that it belongs to; None on a server without keys."""


class FileRecord(OwnedRecord):
    """A file."""

    bytes: int
    created_at: datetime
    expires_at: datetime
    filename: str
    purpose: Purpose

    def shown(self) -> FileObject:
        """Return the file as clients see it."""
        return FileObject(
            id=self.id, bytes=self.bytes, created_at=int(self.created_at.timestamp()),
            expires_at=int(self.expires_at.timestamp()), filename=self.filename, purpose=self.purpose,
        )  # fmt: skip


class BatchRecord(OwnedRecord):
    """A batch: its request, its state, and the replica that works on it."""

    format: Literal[1] = 1
    endpoint: Endpoint
    input_file_id: str
    metadata: dict[str, str] | None
    output_seconds: float
    """Time from the end of the batch to the removal of its files."""
    created_at: datetime
    expires_at: datetime
    model: Mapping[str, Any]
    """Identity of the model that takes it: another model would generate other pictures."""
    status: BatchStatus = BatchStatus.VALIDATING
    times: Mapping[BatchStatus, datetime] = {}
    """The time at which each status began."""
    errors: tuple[BatchError, ...] = ()
    counts: RequestCounts = RequestCounts()
    versions: Mapping[str, int] = {}
    """Adapter versions that the names in its lines mean, so that all lines, whenever they are generated, have the same."""
    output_file_id: str | None = None
    error_file_id: str | None = None
    owner: str = ""
    """The start of a server that works on it; empty for none."""
    renewals: int = 0

    @property
    def is_over(self) -> bool:
        """True if nothing is left to do."""
        return self.status in OVER

    def begun(self, status: BatchStatus, at: datetime) -> dict[str, Any]:
        """Return the changes with which a status begins."""
        return {"status": status, "times": {**self.times, status: at}}

    def shown(self) -> BatchObject:
        """Return the batch as clients see it."""
        times: dict[str, Any] = {f"{status}_at": int(at.timestamp()) for status, at in self.times.items()}
        return BatchObject(
            id=self.id, endpoint=self.endpoint, errors=BatchErrors(data=self.errors) if self.errors else None,
            input_file_id=self.input_file_id, completion_window="24h", status=self.status,
            output_file_id=self.output_file_id, error_file_id=self.error_file_id,
            created_at=int(self.created_at.timestamp()), expires_at=int(self.expires_at.timestamp()),
            request_counts=self.counts, metadata=self.metadata, **times,
        )  # fmt: skip


Record = TypeVar("Record", bound=OwnedRecord)


class Records(Generic[Record]):
    """The records of files, or of batches. Methods raise ``StorageError``."""

    def __init__(self, calls: StorageCalls, prefix: str, model: type[Record]) -> None:
        self._calls = calls
        self._prefix = prefix
        self._model: type[Record] = model
        self._known: dict[str, tuple[Record, str]] = {}

    async def create(self, record: Record) -> None:
        """Store a new record."""
        await self._calls.create(f"{self._prefix}/{record.id}", lambda: record.model_dump_json().encode())

    async def get(self, record_id: str) -> tuple[Record, str] | None:
        """Return a record and its ETag; None if there is none, or it cannot be decoded."""
        if not _ID.fullmatch(record_id):
            return None

        def decode(content: bytes) -> Record | None:
            with suppress(ValidationError):
                return self._model.model_validate_json(content)
            log_event(log, "job_object_damaged", logging.WARNING, key=record_id, bytes=len(content))
            return None

        found = await self._calls.read(f"{self._prefix}/{record_id}", max_bytes=_LARGEST_RECORD_BYTES, decode=decode)
        return None if found is None or found[0] is None else (found[0], found[1])

    async def replace(self, record: Record, etag: str) -> str:
        """Replace a record that has not changed; return its ETag. Raises ``StorageConflictError``."""
        content = record.model_dump_json().encode()
        return await self._calls.replace(f"{self._prefix}/{record.id}", content, etag=etag)

    async def remove(self, record_id: str) -> None:
        """Remove a record."""
        await self._calls.delete(f"{self._prefix}/{record_id}")

    async def all(self) -> list[tuple[Record, str]]:
        """Return all records with their ETags, the newest first. Those that have not changed are not read again."""
        entries = {entry.key.rpartition("/")[2]: entry.etag for entry in await self._calls.list(f"{self._prefix}/")}
        known: dict[str, tuple[Record, str]] = {}
        for record_id in sorted(entries, reverse=True):
            found = self._known.get(record_id)
            if found is None or found[1] != entries[record_id]:
                found = await self.get(record_id)
            if found is not None:
                known[record_id] = found
        self._known = known
        return list(known.values())
