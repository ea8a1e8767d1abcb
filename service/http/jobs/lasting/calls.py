"""Calls to a storage from the event loop: each in a thread of its own, with a deadline, a bounded number at a time."""

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from longcat.errors import StorageConflictError, StorageError, StorageMissingError, StorageTimeoutError
from longcat.logs import log_event
from longcat.storage.deadlines import settle
from longcat.storage.files import FileStorage
from longcat.storage.interface import Blob, Entry, Storage
from service.observability import metrics

log = logging.getLogger("lithograph")

_AT_ONCE = 16
"""Calls at a time. A thread that has passed its deadline counts until it ends, so that threads do not add up."""
_SECONDS = 15.0
_MARK = "jobs-storage"
"""An object that shows that a directory is the storage, and not the empty place where it was mounted."""

Result = TypeVar("Result")


class StorageCalls:
    """One storage. Methods raise its errors, and ``StorageTimeoutError`` at the deadline.

    Nothing interrupts a thread that waits for a dead disk or network: it is left behind as a daemon, and a write of
    which it was in the middle may still take effect. Callers must be prepared for a write that failed and exists.
    """

    def __init__(self, open_storage: Callable[[], Storage]) -> None:
        """``open_storage``: called in the process that uses it, because S3's client does not survive a fork."""
        self._open = open_storage
        self._free = asyncio.Semaphore(_AT_ONCE)
        self._failing: set[str] = set()
        """The kinds of calls of which the last has failed. A full disk, for one, is read all the same."""

    @cached_property
    def _storage(self) -> Storage:
        storage = self._open()
        with suppress(StorageConflictError):
            storage.create(_MARK, b"Jobs of lithograph serve --jobs-storage.\n")
        return storage

    def _checked(self) -> Storage:
        """Return the storage.

        Raises ``StorageError`` for a directory that is gone: it reads as empty, and writing would create it anew.
        """
        if isinstance(self._storage, FileStorage):
            try:
                self._storage.read(_MARK)
            except StorageMissingError as error:
                raise StorageError(
                    "job_storage_gone",
                    "the directory {uri} has been emptied, moved or unmounted",
                    remedy="bring it back; for a new one, start the server again",
                    uri=self._storage.uri,
                ) from error
        return self._storage

    async def read(
        self, key: str, *, max_bytes: int, decode: Callable[[bytes], Result], seconds: float = _SECONDS
    ) -> tuple[Result, str] | None:
        """Return what an object decodes to, and its ETag; None if there is none."""

        def read() -> tuple[Result, str] | None:
            try:
                blob: Blob = self._storage.read(key, max_bytes=max_bytes)
            except StorageMissingError:
                self._checked()
                return None
            return decode(blob.content), blob.etag

        return await self._run("read", read, seconds)

    async def download(self, key: str, target: Path, *, max_bytes: int, seconds: float) -> None:
        """Download a large object into a new file. Raises ``StorageMissingError``."""
        await self._run("download", lambda: self._storage.download(key, target, max_bytes=max_bytes), seconds)

    async def create(self, key: str, encode: Callable[[], bytes | Path], *, seconds: float = _SECONDS) -> str:
        """Store a new object; return its ETag. Raises ``StorageConflictError`` if there is one."""
        return await self._run("create", lambda: self._checked().create(key, encode()), seconds)

    async def replace(self, key: str, content: bytes, *, etag: str) -> str:
        """Replace an object with this ETag; return the new one. Raises ``StorageConflictError``."""
        return await self._run("replace", lambda: self._checked().replace(key, content, etag=etag), _SECONDS)

    async def delete(self, *keys: str) -> None:
        """Remove objects, in this order, where they exist."""

        def delete() -> None:
            for key in keys:
                self._storage.delete(key)

        await self._run("delete", delete, _SECONDS)

    async def list(self, prefix: str) -> list[Entry]:
        """List objects."""
        return await self._run("list", lambda: list(self._checked().list(prefix)), 4 * _SECONDS)

    async def _run(self, kind: str, call: Callable[[], Result], seconds: float) -> Result:
        """Make a call of one kind, which the metric of failures and the log name."""
        try:
            result = await self._in_thread(call, seconds)
        except (StorageConflictError, StorageMissingError):
            self._note(kind, None)
            raise
        except StorageError as error:
            self._note(kind, error)
            raise
        self._note(kind, None)
        return result

    def _note(self, kind: str, error: StorageError | None) -> None:
        """Count a failure. Log the first one, and the first success after it."""
        if error is not None:
            metrics.JOB_STORAGE_ERRORS.labels(kind).inc()
        if error is not None and kind not in self._failing:
            self._failing.add(kind)
            log_event(log, "job_storage_down", logging.WARNING, call=kind, reason=str(error))
        elif error is None and kind in self._failing:
            self._failing.remove(kind)
            log_event(log, "job_storage_up", call=kind)

    async def _in_thread(self, call: Callable[[], Result], seconds: float) -> Result:
        loop = asyncio.get_running_loop()
        future: Future[Result] = Future()
        future.set_running_or_notify_cancel()  # from now on, nothing cancels it: the thread sets its result

        def release(_: object) -> None:
            with suppress(RuntimeError):  # the event loop has ended
                loop.call_soon_threadsafe(self._free.release)

        try:
            async with asyncio.timeout(seconds):
                await self._free.acquire()
                future.add_done_callback(release)
                threading.Thread(target=settle, args=(call, future), daemon=True, name="job storage").start()
                return await asyncio.wrap_future(future)
        except TimeoutError as error:
            raise StorageTimeoutError(
                "job_storage_timeout",
                "the storage of jobs has not answered within {seconds} s",
                remedy="check the storage, its network and its mounts",
                seconds=round(seconds),
            ) from error
