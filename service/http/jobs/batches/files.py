"""Files: what clients upload for a batch, and the results of batches, whose content is stored in parts."""

import asyncio
import json
import shutil
import tempfile
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO

from longcat.errors import StorageConflictError, StorageMissingError
from service.access.caller import Caller, Role
from service.http.jobs.batches.errors import unknown_file
from service.http.jobs.batches.records import FileRecord, Records, age_seconds, new_id
from service.http.jobs.batches.schema import Purpose
from service.http.jobs.lasting.calls import StorageCalls

_CHUNK_BYTES = 256 * 1024
_LARGEST_PART_BYTES = 2**30
_LARGEST_LIST_BYTES = 64 * 2**20
_SECONDS = 120.0
"""Time limit of a call that moves the content of a file, and of each MiB more."""
_UPLOAD_SECONDS = 3600.0
"""Longest time between the start of storing a content and that of its record."""
_AT_ONCE = 100
"""Objects that one call removes."""


class BatchFiles:
    """The files of a storage. Methods raise ``StorageError``."""

    def __init__(self, calls: StorageCalls, kept_seconds: float) -> None:
        self._calls = calls
        self._kept_seconds = kept_seconds
        self.records = Records(calls, "files", FileRecord)

    async def create(
        self, content: BinaryIO, size: int, *, filename: str, key: str | None, kept_seconds: float
    ) -> FileRecord:
        """Store an uploaded file."""
        record = self._record(
            "batch", size, file_id=new_id("file-"), filename=filename, key=key, kept_seconds=kept_seconds
        )
        folder = await asyncio.to_thread(tempfile.mkdtemp)
        try:
            path = Path(folder, "content")
            await asyncio.to_thread(_copy, content, path)
            await self._calls.create(f"contents/{record.id}", lambda: path, seconds=_seconds(size))
        finally:
            await asyncio.to_thread(shutil.rmtree, folder)
        await self.records.create(record)
        return record

    async def create_from_parts(
        self, parts: Sequence[str], size: int, *, file_id: str, filename: str, key: str | None, kept_seconds: float
    ) -> None:
        """Store a file whose content is that of other objects, one after the other, which it owns from then on.

        One of this id that exists already stands.
        """
        record = self._record(
            "batch_output", size, file_id=file_id, filename=filename, key=key, kept_seconds=kept_seconds
        )
        with suppress(StorageConflictError):
            await self._calls.create(f"contents/{record.id}", lambda: json.dumps(parts).encode())
        with suppress(StorageConflictError):
            await self.records.create(record)

    def _record(self, purpose: Purpose, size: int, *, file_id: str, kept_seconds: float, **fields: Any) -> FileRecord:
        now = datetime.now(UTC)
        expires_at = now + timedelta(seconds=min(kept_seconds, self._kept_seconds))
        return FileRecord(id=file_id, bytes=size, created_at=now, expires_at=expires_at, purpose=purpose, **fields)

    async def get(self, file_id: str, caller: Caller, *, field: str = "file_id") -> FileRecord:
        """Return a file of a caller; an administrator may see all. Raises ``NotFoundError``."""
        found = await self.records.get(file_id)
        if found is None or not (caller.has(Role.ADMIN) or found[0].key == caller.name):
            raise unknown_file(file_id, field=field)
        return found[0]

    async def visible_to(self, caller: Caller) -> list[FileRecord]:
        """Return the files of a caller, the newest first."""
        return [record for record, _ in await self.records.all() if caller.has(Role.ADMIN) or record.key == caller.name]

    async def remove(self, record: FileRecord) -> None:
        """Remove a file with its content."""
        if record.purpose == "batch_output":
            await remove_all(self._calls, await self._parts(record))
        await self._calls.delete(f"contents/{record.id}")
        await self.records.remove(record.id)

    async def stream(self, record: FileRecord) -> AsyncGenerator[bytes, None]:
        """Yield the content of a file. Raises ``NotFoundError`` for one that has been removed meanwhile."""
        if record.purpose == "batch":
            with await self.fetch(record) as file:
                while chunk := await asyncio.to_thread(file.read, _CHUNK_BYTES):
                    yield chunk
            return
        for key in await self._parts(record):
            part = await self._calls.read(key, max_bytes=_LARGEST_PART_BYTES, decode=bytes, seconds=_SECONDS)
            if part is None:
                raise unknown_file(record.id)
            yield part[0]

    async def fetch(self, record: FileRecord) -> BinaryIO:
        """Return the content of an uploaded file as a local one without a name, which ends with this process."""
        folder = await asyncio.to_thread(tempfile.mkdtemp)
        try:
            path = Path(folder, "content")
            await self._calls.download(
                f"contents/{record.id}", path, max_bytes=record.bytes, seconds=_seconds(record.bytes)
            )
            return await asyncio.to_thread(path.open, "rb")
        except StorageMissingError as error:
            raise unknown_file(record.id) from error
        finally:
            await asyncio.to_thread(shutil.rmtree, folder)

    async def _parts(self, record: FileRecord) -> list[str]:
        found = await self._calls.read(f"contents/{record.id}", max_bytes=_LARGEST_LIST_BYTES, decode=json.loads)
        keys: list[str] = [] if found is None else found[0]
        return keys

    async def sweep(self, in_use: Collection[str]) -> None:
        """Remove the files that have expired, unless they are in use, and contents whose record was never stored."""
        contents = [entry.key.rpartition("/")[2] for entry in await self._calls.list("contents/")]
        records = {record.id: record for record, _ in await self.records.all()}
        for record in records.values():
            if record.expires_at <= datetime.now(UTC) and record.id not in in_use:
                await self.remove(record)
        for file_id in contents:
            if file_id not in records and age_seconds(file_id) > _UPLOAD_SECONDS:
                await self._calls.delete(f"contents/{file_id}")


async def remove_all(calls: StorageCalls, keys: Sequence[str]) -> None:
    """Remove many objects."""
    for i in range(0, len(keys), _AT_ONCE):
        await calls.delete(*keys[i : i + _AT_ONCE])


def _copy(content: BinaryIO, path: Path) -> None:
    content.seek(0)
    with path.open("xb") as file:
        shutil.copyfileobj(content, file)


def _seconds(size: int) -> float:
    return _SECONDS + size / 2**20
