"""The file of one process's metric values, in the format of prometheus-client's ``MmapedDict``.

prometheus-client maps a sparse file into memory: on a full disk, the first write to a new page ends the process with
SIGBUS. Here, values are kept in memory and written with ``pwrite`` into blocks that were allocated by writing zeros. A
full disk only delays the file: it is rewritten as a whole once there is space.
"""

import contextlib
import logging
import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.mmap_dict import MmapedDict

from longcat.logs import log_event

log = logging.getLogger("lithograph")

_BLOCK_BYTES = 1 << 16
_HEADER = struct.Struct("i4x")
"""The bytes in use, this header included."""
_VALUE = struct.Struct("dd")
"""Value and timestamp."""
_RETRY_SECONDS = 1.0


class ValuesFile:
    """Values by key, in memory and in a file that other processes read. Not thread-safe, as ``MmapedDict``."""

    def __init__(self, filename: str) -> None:
        self._path = Path(filename)
        self._content = bytearray(_BLOCK_BYTES)
        self._used = _HEADER.size
        _HEADER.pack_into(self._content, 0, self._used)
        self._positions: dict[str, int] = {}
        self._handle: int | None = None
        self._stored_bytes = 0
        """Size of the file; beyond it, and with 0, values wait in memory for the next attempt to write the whole file."""
        self._retry_at = 0.0
        self._write_whole()

    def read_value(self, key: str) -> tuple[float, float]:
        """Return value and timestamp of a key, which is added if it is new."""
        value, timestamp = _VALUE.unpack_from(self._content, self._position(key))
        return value, timestamp

    def write_value(self, key: str, value: float, timestamp: float) -> None:
        """Set value and timestamp of a key, which is added if it is new."""
        position = self._position(key)
        _VALUE.pack_into(self._content, position, value, timestamp)
        self._write(position, position + _VALUE.size)

    def close(self) -> None:
        """Close the file; it is kept on disk."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
            self._stored_bytes = 0

    def _position(self, key: str) -> int:
        if key not in self._positions:
            begin, record = self._used, _record(key)
            self._used += len(record)
            while self._used > len(self._content):
                self._content += bytes(_BLOCK_BYTES)
            self._content[begin : self._used] = record
            _HEADER.pack_into(self._content, 0, self._used)
            self._positions[key] = self._used - _VALUE.size
            self._write(begin, self._used)
            if self._used <= self._stored_bytes:  # after the record, so that no reader finds half of it
                self._write(0, _HEADER.size)
        return self._positions[key]

    def _write(self, begin: int, end: int) -> None:
        if end > self._stored_bytes or self._handle is None:
            self._write_whole()
            return
        try:
            _write_all(self._handle, self._content[begin:end], begin)
        except OSError as error:
            self._stored_bytes = 0
            self._delay(error)

    def _write_whole(self) -> None:
        """Replace the file, so that no reader finds a part of it; try again later if there is no room."""
        if time.monotonic() < self._retry_at:
            return
        partial = self._path.with_suffix(".partial")
        try:
            handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            try:
                _write_all(handle, self._content, 0)
                partial.rename(self._path)
            except OSError:
                os.close(handle)
                with contextlib.suppress(OSError):
                    partial.unlink()
                raise
        except OSError as error:
            self._delay(error)
            return
        self.close()
        self._handle, self._stored_bytes = handle, len(self._content)

    def _delay(self, error: OSError) -> None:
        has_ended = not self._path.parent.exists()  # with its run, whose last processes may still import their modules
        if not self._retry_at and not has_ended:
            log_event(log, "metrics_delayed", logging.WARNING, path=str(self._path), reason=error.strerror)
        self._retry_at = time.monotonic() + _RETRY_SECONDS


def fold(ended: Path, total: Path) -> None:
    """Add the counts of a process that has ended to those of all that ended before, and remove its file.

    Raises ``OSError`` with both files as they were. No process may read them meanwhile.
    """
    counts = dict(_read(total)) if total.exists() else {}
    for key, count in _read(ended):
        counts[key] = counts.get(key, 0.0) + count
    content = b"".join(_record(key, count) for key, count in counts.items())
    partial = total.with_suffix(".partial")
    try:
        partial.write_bytes(_HEADER.pack(_HEADER.size + len(content)) + content)
        partial.rename(total)
    finally:
        partial.unlink(missing_ok=True)
    ended.unlink()


def _read(path: Path) -> Iterator[tuple[str, float]]:
    for key, value, _, _ in MmapedDict.read_all_values_from_file(path):
        yield key, value


def _record(key: str, value: float = 0.0) -> bytes:
    """Encode a key, padded with spaces so that its value is aligned to 8 bytes."""
    encoded = key.encode()
    padded = encoded + b" " * (8 - (len(encoded) + 4) % 8)
    return struct.pack(f"i{len(padded)}sdd", len(encoded), padded, value, 0.0)


def _write_all(handle: int, content: bytes | bytearray, begin: int) -> None:
    done = 0
    while done < len(content):
        done += os.pwrite(handle, memoryview(content)[done:], begin + done)
