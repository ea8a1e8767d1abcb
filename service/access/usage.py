"""The use of a server by key, day and model, kept in SQLite.

Engine processes add to it, and the HTTP process reads it. A request is added in one transaction before its result is sent: a
picture that was delivered is counted, and counted once, even if a process is killed at any moment. At most the requests
under way at that moment may be counted without having been delivered. The exception is a disk that cannot be written: then
the counts stay in memory until it can.
"""

import logging
import sqlite3
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date
from pathlib import Path

from longcat.errors import StorageError
from longcat.logs import log_event
from longcat.storage.disk import not_written
from service.wire.messages import DeviceUsage, KeyUsage, UsageReport

log = logging.getLogger("lithograph")

FILE = "usage.sqlite3"
_BUSY_SECONDS = 10.0
"""Time that a process waits for the write of another."""
_CREATE = """
CREATE TABLE IF NOT EXISTS usage (
    key TEXT NOT NULL, day TEXT NOT NULL, model TEXT NOT NULL,
    requests INTEGER NOT NULL, pictures INTEGER NOT NULL, pixel_steps INTEGER NOT NULL, device_seconds REAL NOT NULL,
    PRIMARY KEY (key, day, model)
) WITHOUT ROWID
"""
_ADD = """
INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key, day, model) DO UPDATE SET
    requests = requests + excluded.requests, pictures = pictures + excluded.pictures,
    pixel_steps = pixel_steps + excluded.pixel_steps, device_seconds = device_seconds + excluded.device_seconds
"""
_READ = "SELECT * FROM usage WHERE day >= ? AND day <= ? AND (? IS NULL OR key = ?) ORDER BY day, key, model"


class UsageLedger:
    """The writing side, of one engine process. Its thread alone writes, so that no step waits for a disk."""

    def __init__(self, folder: Path) -> None:
        """Open or create the file. Raises ``StorageError``."""
        self._path = folder / FILE
        self._thread = ThreadPoolExecutor(1, "usage")
        self._unwritten: dict[tuple[str, str, str], DeviceUsage] = {}
        self._has_failed = False
        with _as_storage_error(self._path):
            folder.mkdir(parents=True, exist_ok=True)
            self._connection = _connect(self._path)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")  # durable when a process ends, not when power does
            self._connection.execute(_CREATE)

    def add(self, usage: DeviceUsage, *, key: str | None, day: date, model: str) -> Future[None]:
        """Add to the use by a key. The result of the future is there once it is written, or has failed."""
        return self._thread.submit(self._write, (key or "", day.isoformat(), model), usage)

    def close(self) -> None:
        """Write what is left, and close the file."""
        self._thread.shutdown()
        self._connection.close()

    def _write(self, place: tuple[str, str, str], usage: DeviceUsage) -> None:
        self._unwritten[place] = self._unwritten.get(place, DeviceUsage()) + usage
        try:
            with self._connection:
                self._connection.execute("BEGIN IMMEDIATE")
                rows = [(*place, *added.model_dump().values()) for place, added in self._unwritten.items()]
                self._connection.executemany(_ADD, rows)
        except sqlite3.Error as error:
            if not self._has_failed:
                log_event(log, "usage_not_written", logging.ERROR, path=str(self._path), reason=str(error))
            self._has_failed = True
        else:
            self._unwritten.clear()
            self._has_failed = False


def create_ledger(folder: Path) -> None:
    """Check at start that usage can be kept in a directory. Raises ``StorageError``."""
    UsageLedger(folder).close()


def read_usage(folder: Path, *, since: date, until: date, key: str | None = None) -> UsageReport:
    """Return the use from one day to another, both included; ``key``: by one key alone. Raises ``StorageError``."""
    with _as_storage_error(folder / FILE):
        connection = _connect(folder / FILE)
        try:
            found = connection.execute(_READ, (since.isoformat(), until.isoformat(), key, key)).fetchall()
        finally:
            connection.close()
    names = ("key", "day", "model", *DeviceUsage.model_fields)
    rows = [dict(zip(names, row, strict=True)) for row in found]
    return UsageReport.of(tuple(KeyUsage.model_validate(row | {"key": row["key"] or None}) for row in rows))


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)


@contextmanager
def _as_storage_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise not_written(path, error, field="--state-dir") from error
    except sqlite3.Error as error:
        raise StorageError(
            "usage_unusable",
            "usage cannot be kept there: {reason}",
            remedy="give a directory on a local disk that this process may write",
            field="--state-dir",
            value=str(path),
            reason=str(error),
        ) from error
