"""The batches of a storage, as one replica serves them: who works on which, and when they are removed.

A replica that works on a batch renews its record. Another takes the batch once it has itself seen the record unchanged for
``lease_seconds``, by its own monotonic clock, as it does with jobs (``service.http.jobs.lasting.store``). Results of lines
are created once, so that a line has one result, however often it was generated.
"""

import asyncio
import logging
import random
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

from longcat.errors import StorageConflictError, StorageError, StorageMissingError
from longcat.logs import log_event
from service.access.caller import Caller, Role
from service.access.key_file import KeyFile
from service.http.admission import Admission
from service.http.edge.authentication import caller_named
from service.http.jobs.batches.errors import BatchConflictError, unknown_batch
from service.http.jobs.batches.files import BatchFiles, remove_all
from service.http.jobs.batches.held import BatchLostError, HeldBatch
from service.http.jobs.batches.records import BatchRecord, Records, new_id
from service.http.jobs.batches.run import BatchRun, lines_prefix
from service.http.jobs.batches.schema import BatchStatus, CreateBatchRequest
from service.http.jobs.lasting.calls import StorageCalls
from service.http.jobs.lasting.observation import Observation
from service.observability import metrics

log = logging.getLogger("lithograph")

COMPLETION_WINDOW = timedelta(hours=24)
_MOST_HELD = 8
"""Batches that one replica works on at a time: each has its file on the local disk."""
_RENEWALS, _LOOKS = 3, 10
"""Renewals, and looks for batches without a replica, in the time of a lease."""
_LONGEST_SWEEP_SECONDS = 600.0
_RANDOM = random.SystemRandom()


class ImageBatches:
    """The files and batches that this server answers for."""

    def __init__(self, admission: Admission, calls: StorageCalls, key_file: KeyFile | None) -> None:
        self._admission = admission
        self._calls = calls
        self._key_file = key_file
        jobs = admission.config.jobs
        self._lease_seconds, self.kept_seconds = jobs.lease_seconds, jobs.kept_seconds
        self.files = BatchFiles(calls, jobs.kept_seconds)
        self.records = Records(calls, "batches", BatchRecord)
        self._observation = Observation(jobs.lease_seconds)
        self._owner = uuid.uuid4().hex
        self._held: dict[str, tuple[BatchRun, asyncio.Task[None]]] = {}
        self._is_new = asyncio.Event()

    async def create(self, body: CreateBatchRequest, caller: Caller, request_id: str) -> BatchRecord:
        """Store a new batch, which a replica with room takes. Raises ``UserError`` or ``UnavailableError``."""
        caller.check(Role.GENERATE)
        self._admission.check_ready()
        file = await self.files.get(body.input_file_id, caller, field="input_file_id")
        if file.purpose != "batch":
            raise BatchConflictError(
                "batch_file_is_output", "the file holds results", remedy="give a file with the purpose batch",
                field="input_file_id", value=file.id,
            )  # fmt: skip
        now, kept = datetime.now(UTC), body.output_expires_after
        record = BatchRecord(
            id=new_id("batch_"), key=caller.name, endpoint=body.endpoint, input_file_id=file.id, metadata=body.metadata,
            output_seconds=self.kept_seconds if kept is None else kept.seconds, created_at=now,
            expires_at=now + COMPLETION_WINDOW, model=self._admission.model_identity,
        )  # fmt: skip
        await self.records.create(record)
        log_event(log, "batch_created", request_id=request_id, batch=record.id, key=record.key, file=file.id)
        self._is_new.set()
        return record

    async def get(self, batch_id: str, caller: Caller) -> BatchRecord:
        """Return a batch of a caller; an administrator may see all. Raises ``NotFoundError``."""
        return (await self._found(batch_id, caller))[0]

    async def visible_to(self, caller: Caller) -> list[BatchRecord]:
        """Return the batches of a caller, the newest first."""
        return [record for record, _ in await self.records.all() if caller.has(Role.ADMIN) or record.key == caller.name]

    async def cancel(self, batch_id: str, caller: Caller) -> BatchRecord:
        """Stop a batch, whichever replica has it. Raises ``NotFoundError`` or ``BatchConflictError``."""
        while True:
            record, etag = await self._found(batch_id, caller)
            if record.status in (BatchStatus.CANCELLING, BatchStatus.CANCELLED):
                return record
            if record.is_over or record.status is BatchStatus.FINALIZING:
                raise BatchConflictError(
                    "batch_over", "the batch is {status} and cannot be cancelled", remedy="fetch its files",
                    field="batch_id", value=record.id, status=str(record.status),
                )  # fmt: skip
            changed = record.model_copy(update=record.begun(BatchStatus.CANCELLING, datetime.now(UTC)))
            try:
                await self.records.replace(changed, etag)
            except (StorageConflictError, StorageMissingError):
                continue  # a renewal at the same time
            if (held := self._held.get(batch_id)) is not None:
                held[0].look()
            return changed

    async def delete_file(self, file_id: str, caller: Caller) -> None:
        """Remove a file. Raises ``NotFoundError``, or ``BatchConflictError`` if a batch needs it."""
        record = await self.files.get(file_id, caller)
        if record.id in await self._inputs():
            raise BatchConflictError(
                "file_in_use", "a batch that is not finished reads the file", remedy="cancel the batch first",
                field="file_id", value=record.id,
            )  # fmt: skip
        await self.files.remove(record)

    async def _found(self, batch_id: str, caller: Caller) -> tuple[BatchRecord, str]:
        found = await self.records.get(batch_id)
        if found is None or not (caller.has(Role.ADMIN) or found[0].key == caller.name):
            raise unknown_batch(batch_id)
        return found

    async def _inputs(self) -> set[str]:
        """Return the files that unfinished batches read."""
        return {record.input_file_id for record, _ in await self.records.all() if not record.is_over}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Work on batches while this context is entered."""
        sweep_seconds = min(_LONGEST_SWEEP_SECONDS, 0.1 * self.kept_seconds)
        tasks = [
            asyncio.create_task(self._repeat(self._lease_seconds / _LOOKS, self._take_up, wake=self._is_new)),
            asyncio.create_task(self._repeat(sweep_seconds, self._sweep, wake=asyncio.Event())),
        ]
        try:
            yield
        finally:
            tasks += [task for _, task in self._held.values()]
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _repeat(
        self, seconds: float, work: Callable[[], Coroutine[Any, Any, None]], *, wake: asyncio.Event
    ) -> None:
        while True:
            wake.clear()
            try:
                await work()
            except StorageError:  # an outage, which ``StorageCalls`` has logged
                pass
            except Exception:  # any: the other batches go on
                log.exception("the work on batches failed")
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds * _RANDOM.uniform(0.8, 1.2)):  # replicas do not all act at once
                    await wake.wait()

    async def _take_up(self) -> None:
        """Take batches that no replica works on, as far as there is room: those of keys with few of them first."""
        if not self._admission.has_spare_room:
            return
        found = {record.id: (record, etag) for record, etag in await self.records.all() if not record.is_over}
        ended = set(self._observation.note({batch: etag for batch, (_, etag) in found.items()}))
        free = [
            (record, etag)
            for record, etag in reversed(found.values())
            if record.id not in self._held and (not record.owner or record.id in ended)
        ]
        identity = self._admission.model_identity
        while len(self._held) < _MOST_HELD and free:
            keys = Counter(run.record.key for run, _ in self._held.values())
            record, etag = min(free, key=lambda each: keys[each[0].key])
            free.remove((record, etag))
            needs_model = record.status is not BatchStatus.CANCELLING and record.expires_at > datetime.now(UTC)
            if dict(record.model) == identity or not needs_model:
                await self._take(record, etag)

    async def _take(self, record: BatchRecord, etag: str) -> None:
        """Take a batch, unless another replica is faster."""
        taken = record.model_copy(update={"owner": self._owner, "renewals": record.renewals + 1})
        try:
            etag = await self.records.replace(taken, etag)
        except (StorageConflictError, StorageMissingError):
            return
        log_event(log, "batch_taken", batch=record.id, key=record.key, status=str(record.status))

        async def caller_of(name: str | None) -> Caller | None:
            return await caller_named(name, self._admission.config.access, self._key_file)

        run = BatchRun(
            HeldBatch(taken, etag, self.records), admission=self._admission, calls=self._calls, files=self.files,
            caller_of=caller_of, renew_seconds=self._lease_seconds / _RENEWALS,
        )  # fmt: skip
        self._held[record.id] = (run, asyncio.create_task(self._work(run)))

    async def _work(self, run: BatchRun) -> None:
        metrics.BATCHES_HELD.inc()
        try:
            await run.work()
        except BatchLostError:
            log_event(log, "batch_lost", logging.WARNING, batch=run.record.id, key=run.record.key)
        except StorageError:  # it is taken again once its lease ends
            pass
        except Exception:  # any: no caller awaits this task
            log.exception("batch %s failed", run.record.id)
        finally:
            metrics.BATCHES_HELD.dec()
            del self._held[run.record.id]
            self._is_new.set()

    async def _sweep(self) -> None:
        """Remove files that have expired, then batches that ended as long ago, with what is left of their lines."""
        await self.files.sweep(await self._inputs())
        for record, _ in await self.records.all():
            ended_at = record.times.get(record.status)
            if record.is_over and ended_at and datetime.now(UTC) - ended_at >= timedelta(seconds=self.kept_seconds):
                await remove_all(self._calls, [e.key for e in await self._calls.list(f"{lines_prefix(record.id)}/")])
                await self.records.remove(record.id)
