"""The record of a batch that this replica works on, which changes by compare-and-swap."""

import asyncio
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from longcat.errors import StorageConflictError, StorageError, StorageMissingError
from service.http.jobs.batches.records import BatchRecord, Records
from service.http.jobs.batches.schema import OVER, BatchStatus


class BatchLostError(Exception):
    """Another replica has the batch, or it was removed."""


class HeldBatch:
    """The record, as this replica last wrote or read it."""

    def __init__(self, record: BatchRecord, etag: str, records: Records[BatchRecord]) -> None:
        self.record = record
        self._etag = etag
        self._records = records
        self._writing = asyncio.Lock()
        self.is_stopped = asyncio.Event()
        """Set once the batch has been cancelled."""
        self._note()

    async def save(self, status: BatchStatus | None = None, **changes: Any) -> None:
        """Store changes, as a renewal of the lease. A batch that was cancelled meanwhile stays so until it ends.

        Raises ``BatchLostError`` or ``StorageError``.
        """
        async with self._writing:
            while True:
                record = self.record
                is_kept = record.status is BatchStatus.CANCELLING and status not in OVER
                begun = {} if status is None or is_kept else record.begun(status, datetime.now(UTC))
                changed = record.model_copy(update=changes | begun | {"renewals": record.renewals + 1})
                try:
                    self._etag = await self._records.replace(changed, self._etag)
                except (StorageConflictError, StorageMissingError):
                    await self._follow()
                else:
                    self.record = changed
                    return

    async def _follow(self) -> None:
        """Take over what a client, or a write of our own that seemed to have failed, has changed."""
        found = await self._records.get(self.record.id)
        if found is None or found[0].owner != self.record.owner or found[1] == self._etag:
            raise BatchLostError
        self.record, self._etag = found
        self._note()

    def _note(self) -> None:
        if self.record.status is BatchStatus.CANCELLING:
            self.is_stopped.set()

    async def release(self) -> None:
        """Give an unfinished batch to other replicas at once."""
        if not self.record.is_over:
            with suppress(StorageError):
                await self._records.replace(self.record.model_copy(update={"owner": ""}), self._etag)
