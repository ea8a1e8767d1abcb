"""The work of one replica on one batch: check its file, generate its lines, store its results."""

import asyncio
import hashlib
import logging
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from typing import Any

from longcat.errors import StorageConflictError, StorageError
from longcat.logs import log_event
from longcat.storage.interface import Entry
from service.access.caller import Caller
from service.http.adapters import AdapterCommands
from service.http.admission import Admission
from service.http.error_responses import NotFoundError
from service.http.jobs.batches.files import BatchFiles
from service.http.jobs.batches.generation import CallerOf, LineGeneration
from service.http.jobs.batches.held import HeldBatch
from service.http.jobs.batches.lines import ENVELOPE_BYTES, InputFile, result_line
from service.http.jobs.batches.records import BatchRecord
from service.http.jobs.batches.schema import BatchError, BatchStatus, RequestCounts
from service.http.jobs.lasting.calls import StorageCalls
from service.observability import metrics

log = logging.getLogger("lithograph")

_RETRY_SECONDS = 2.0
"""Pause before an object is stored again, while the storage cannot be reached."""
_RESULT_SECONDS = 120.0
_OUTPUT, _ERRORS = _KINDS = ("output", "errors")
_OK = 200
_EXPIRED = BatchError(
    code="batch_expired", message="This request could not be executed before the completion window expired."
)
_CANCELLED = BatchError(code="batch_cancelled", message="The batch was cancelled before this request was executed.")


class BatchRun:
    """One batch that this replica has."""

    def __init__(
        self, held: HeldBatch, *, admission: Admission, calls: StorageCalls, files: BatchFiles, caller_of: CallerOf,
        renew_seconds: float,
    ) -> None:  # fmt: skip
        self._held = held
        self._admission = admission
        self._calls = calls
        self._files = files
        self._config = admission.config.batches
        self._caller_of = caller_of
        self._renew_seconds = renew_seconds
        self._is_changed = asyncio.Event()
        self._sizes: dict[str, dict[int, int]] = {kind: {} for kind in _KINDS}
        """Bytes of the results, by kind and line."""

    @property
    def record(self) -> BatchRecord:
        """The batch as it was last stored."""
        return self._held.record

    async def work(self) -> None:
        """Bring the batch to its end. Raises ``BatchLostError``; being cancelled gives the batch to other replicas."""
        renewing = asyncio.create_task(self._renew())
        working = asyncio.create_task(self._steps())
        try:
            await asyncio.wait({renewing, working}, return_when=asyncio.FIRST_COMPLETED)
            for task in (working, renewing):
                if task.done():
                    task.result()
        except asyncio.CancelledError:
            await _cancelled(renewing, working)
            await self._held.release()
            raise
        finally:
            await _cancelled(renewing, working)

    async def _steps(self) -> None:
        if (source := await self._checked()) is None:
            return
        with source.file:
            await self._find_results()
            if self.record.status is not BatchStatus.FINALIZING:
                await self._generate(source)
            await self._finalize(source)

    async def _checked(self) -> InputFile | None:
        """Return the batch's file; None for one with problems, which ends the batch."""
        config = self._admission.config
        try:
            found = await self._files.records.get(self.record.input_file_id)
            if found is None:
                raise NotFoundError(
                    "batch_file_gone", "the file of the batch has been deleted", remedy="upload it again"
                )
            file = await self._files.fetch(found[0])
        except NotFoundError as error:
            await self._end(BatchStatus.FAILED, errors=(BatchError(code=error.problems[0].code, message=str(error)),))
            return None
        pictures = config.pictures.max_image_bytes * 4 // 3 if self.record.endpoint == "/v1/images/edits" else 0
        longest = config.max_body_bytes + pictures + ENVELOPE_BYTES
        source = InputFile(file=file, endpoint=self.record.endpoint, max_line_bytes=longest)
        is_new = self.record.status is BatchStatus.VALIDATING
        await asyncio.to_thread(source.check, max_lines=self._config.max_lines if is_new else 2**31)
        if is_new and source.problems:
            await self._end(BatchStatus.FAILED, errors=tuple(source.problems))
            return None
        if is_new:
            counts = RequestCounts(total=len(source.offsets))
            versions = await self._versions(source.adapters)
            await self._held.save(BatchStatus.IN_PROGRESS, counts=counts, versions=versions)
        elif not self.record.counts.total:  # cancelled before it was checked
            await self._end(BatchStatus.CANCELLED)
            return None
        return source

    async def _versions(self, names: set[str]) -> dict[str, int]:
        """Return the versions that names of adapters mean now, as far as the batch's key may use them."""
        caller: Caller | None = await self._caller_of(self.record.key)
        if caller is None or not names or not self._admission.limits.has_adapters:
            return {}
        report = await AdapterCommands(self._admission, self.record.id, caller).report()
        return {s.name: s.version for s in report.adapters if s.name in names and s.version is not None}

    async def _generate(self, source: InputFile) -> None:
        """Generate the lines that have no result, a bounded number at a time, until their time is over."""
        left = iter(self._left(source))
        generation = LineGeneration(self._admission, self.record, self._caller_of)
        workers = [
            asyncio.create_task(self._lines(source, left, generation)) for _ in range(self._config.lines_at_a_time)
        ]
        everything = asyncio.gather(*workers)
        stopped = asyncio.create_task(self._held.is_stopped.wait())
        try:
            seconds = max(0.0, (self.record.expires_at - datetime.now(UTC)).total_seconds())
            waiting: set[asyncio.Future[Any]] = {everything, stopped}
            await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if everything.done():
                everything.result()
        finally:
            stopped.cancel()
            everything.cancel()
            await asyncio.wait(workers)
            await asyncio.wait({everything})
            if not everything.cancelled():
                everything.exception()  # asyncio logs those that nobody has looked at

    async def _lines(self, source: InputFile, numbers: Iterator[int], generation: LineGeneration) -> None:
        for i in numbers:
            if self._held.is_stopped.is_set() or datetime.now(UTC) >= self.record.expires_at:
                return
            line, size = await asyncio.to_thread(source.line, i)
            request_id = self._request_id(i)
            with ExitStack() as hold:
                result = await generation.result(
                    line, size, number=i, request_id=request_id, versions=self.record.versions, hold=hold
                )
                content = await asyncio.to_thread(
                    result_line,
                    request_id=request_id, custom_id=line.custom_id, status=result.status, body=result.body,
                )  # fmt: skip
                await self._store(_OUTPUT if result.status == _OK else _ERRORS, i, content)

    async def _store(self, kind: str, i: int, content: bytes) -> None:
        """Store a result, again and again while the storage cannot be reached. The first one of a line stands."""
        while True:
            try:
                await self._calls.create(self._key(kind, i), lambda: content, seconds=_RESULT_SECONDS)
            except StorageConflictError:  # of a replica that was only stopped: the pictures are the same
                self._sizes[kind] |= _sizes(await self._calls.list(self._key(kind, i)))
                return
            except StorageError:
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                self._sizes[kind][i] = len(content)
                metrics.BATCH_LINES.labels("completed" if kind == _OUTPUT else "failed").inc()
                return

    async def _finalize(self, source: InputFile) -> None:
        """Make the files of results, and end the batch. A repetition by another replica makes the same files."""
        await self._held.save(BatchStatus.FINALIZING)
        is_cancelled = self.record.status is BatchStatus.CANCELLING
        left = self._left(source)
        parts = {kind: [(self._key(kind, i), size) for i, size in sorted(self._sizes[kind].items())] for kind in _KINDS}
        if left:
            content = await asyncio.to_thread(self._rest, source, left, _CANCELLED if is_cancelled else _EXPIRED)
            key = f"{self._prefix}/rest/{hashlib.sha256(content).hexdigest()}"
            with suppress(StorageConflictError):
                await self._calls.create(key, lambda: content, seconds=_RESULT_SECONDS)
            parts[_ERRORS].append((key, len(content)))
        ids = {kind: await self._file(kind, parts[kind]) for kind in _KINDS}
        completed = len(self._sizes[_OUTPUT])
        counts = RequestCounts(total=len(source.offsets), completed=completed, failed=len(source.offsets) - completed)
        status = BatchStatus.COMPLETED if not left else BatchStatus.EXPIRED
        await self._end(
            BatchStatus.CANCELLED if is_cancelled else status,
            counts=counts, output_file_id=ids[_OUTPUT], error_file_id=ids[_ERRORS],
        )  # fmt: skip

    def _rest(self, source: InputFile, left: list[int], error: BatchError) -> bytes:
        """Return the results of lines that were not generated."""
        return b"".join(
            result_line(request_id=self._request_id(i), custom_id=source.line(i)[0].custom_id, error=error)
            for i in left
        )

    async def _file(self, kind: str, parts: list[tuple[str, int]]) -> str | None:
        """Return the id of the file with these parts; None for no parts."""
        if not parts:
            return None
        record = self.record
        file_id = f"file-{record.id[-32:][:12]}{_digest(record.id, kind)[:20]}"
        await self._files.create_from_parts(
            [key for key, _ in parts], sum(size for _, size in parts), file_id=file_id,
            filename=f"{record.id}_{kind}.jsonl", key=record.key, kept_seconds=record.output_seconds,
        )  # fmt: skip
        return file_id

    async def _end(self, status: BatchStatus, **changes: Any) -> None:
        await self._held.save(status, **changes)
        record = self.record
        metrics.BATCHES.labels(str(record.status)).inc()
        log_event(
            log, "batch_ended", batch=record.id, key=record.key, status=str(record.status), **record.counts.model_dump()
        )

    def look(self) -> None:
        """Look at once whether the batch has been cancelled."""
        self._is_changed.set()

    async def _renew(self) -> None:
        """Show that this replica works on the batch, and how far it is."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._renew_seconds):
                    await self._is_changed.wait()
            self._is_changed.clear()
            with suppress(StorageError):  # the next renewal comes before the lease ends
                await self._held.save(counts=self._counts())

    def _counts(self) -> RequestCounts:
        completed, failed = (len(self._sizes[kind]) for kind in _KINDS)
        return RequestCounts(total=self.record.counts.total, completed=completed, failed=failed)

    async def _find_results(self) -> None:
        for kind in _KINDS:
            self._sizes[kind] = _sizes(await self._calls.list(f"{self._prefix}/{kind}/"))
        for i in self._sizes[_OUTPUT]:  # of two replicas, of which one was only stopped
            self._sizes[_ERRORS].pop(i, None)

    def _left(self, source: InputFile) -> list[int]:
        """Return the lines without a result."""
        return [i for i in range(len(source.offsets)) if not any(i in self._sizes[kind] for kind in _KINDS)]

    @property
    def _prefix(self) -> str:
        return lines_prefix(self.record.id)

    def _key(self, kind: str, i: int) -> str:
        return f"{self._prefix}/{kind}/{i:08d}"

    def _request_id(self, i: int) -> str:
        return f"batch_req_{_digest(self.record.id, str(i))[:32]}"


async def _cancelled(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


def lines_prefix(batch_id: str) -> str:
    """Return the folder of the results of a batch's lines."""
    return f"batch-lines/{batch_id}"


def _sizes(entries: Iterable[Entry]) -> dict[int, int]:
    return {int(entry.key.rpartition("/")[2]): entry.size_bytes for entry in entries}


def _digest(*parts: str) -> str:
    return hashlib.sha256("/".join(parts).encode()).hexdigest()
