"""Reading of a directory that other programs also write: regular files alone, within a size and a time. No torch.

Symbolic links are followed, to files and to directories. ``find`` visits as many levels as its pattern has, so that links to
a parent directory or to ``/`` cost no more than others.
"""

import errno
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from longcat.errors import StorageError, StorageTimeoutError
from longcat.storage.deadlines import Deadlines
from longcat.storage.interface import Blob, Entry, too_large
from longcat.storage.regular import NotRegularError, open_regular

_CHUNK_BYTES = 8 * 2**20
_READ_SECONDS = 10.0
LEAST_BYTES_PER_SECOND = 2**20
"""The slowest download that is waited for."""
_BATCH = 64
"""Directories that one thread visits: a thread for each would take longer than the visit."""


class FileTree:
    """The files below a directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uri = root.as_uri()
        self._deadlines = Deadlines()
        self._has_existed = False
        """True once the root has been listed: from then on, a missing root is an error."""

    def probe(self) -> None:
        """Raise ``OSError`` or ``StorageTimeoutError`` if the root cannot be listed."""
        self._names(self.root, self.uri)

    def find(self, pattern: str) -> Iterator[Entry]:
        """Yield the objects whose keys match, those that cannot be read included. Raises as ``probe``."""
        first, *rest = pattern.split("/")
        names = self._names(self.root, self.uri) if first == "*" else [first]
        for i in range(0, len(names), _BATCH):
            batch = names[i : i + _BATCH]
            try:
                yield from self._matches_of(f"{batch[0]}…", batch, rest)
            except StorageTimeoutError:  # only this one does not answer
                for name in batch:
                    try:
                        yield from self._matches_of(name, [name], rest)
                    except StorageTimeoutError:
                        if "*" not in rest:
                            yield Entry(key="/".join([name, *rest]), size_bytes=0, etag="timeout")

    def read(self, key: str, *, max_bytes: int) -> Blob:
        """Read a file; content and ETag belong together even if the file is replaced meanwhile."""

        def read() -> Blob:
            with self._open(key, max_bytes) as stream:
                content = stream.read(max_bytes + 1) or b""
                if len(content) > max_bytes:
                    raise too_large(f"{self.uri}/{key}", max_bytes)
                return Blob(content=content, etag=file_etag(os.fstat(stream.fileno())))

        return self._deadlines.run(f"{self.uri}/{key}", _READ_SECONDS, read)

    def copy(self, key: str, target: Path, *, max_bytes: int | None) -> None:
        """Copy a file to a new one. Without ``max_bytes``, there is no deadline."""

        def copy() -> None:
            left = max_bytes
            with self._open(key, max_bytes) as source, target.open("xb") as stream:
                while chunk := source.read(_CHUNK_BYTES):
                    stream.write(chunk)
                    if left is not None and (left := left - len(chunk)) < 0:
                        raise too_large(f"{self.uri}/{key}", max_bytes)

        if max_bytes is None:
            copy()
        else:
            self._deadlines.run(f"{self.uri}/{key}", download_seconds(max_bytes), copy)

    def _open(self, key: str, max_bytes: int | None) -> BinaryIO:
        """Open a regular file.

        A key that leads out of the root by itself names nothing here: manifests have keys, and others write those.
        """
        if key.startswith("/") or ".." in key.split("/"):
            raise FileNotFoundError(errno.ENOENT, "not a key of this storage", key)
        try:
            stream = open_regular(self.root / key)
        except NotADirectoryError as error:
            raise FileNotFoundError(*error.args) from error
        except NotRegularError as error:
            raise StorageError(
                "storage_not_a_file",
                "{uri} is not a regular file",
                remedy="put a file in its place, or remove it",
                uri=f"{self.uri}/{key}",
            ) from error
        if max_bytes is not None and os.fstat(stream.fileno()).st_size > max_bytes:
            stream.close()
            raise too_large(f"{self.uri}/{key}", max_bytes)
        return stream

    def _names(self, folder: Path, uri: str) -> list[str]:
        """Return the names in a directory, without hidden ones; none for a root that has not been created yet."""

        def names() -> list[str]:
            with os.scandir(folder) as entries:
                return [entry.name for entry in entries if not entry.name.startswith(".")]

        try:
            found = self._deadlines.run(uri, _READ_SECONDS, names)
        except FileNotFoundError as error:
            if self._has_existed:
                raise OSError(errno.ENOTCONN, "the directory was there and is missing", str(folder)) from error
            return []
        self._has_existed = True
        return found

    def _matches_of(self, label: str, names: Sequence[str], rest: Sequence[str]) -> list[Entry]:
        return self._deadlines.run(
            f"{self.uri}/{label}",
            _READ_SECONDS,
            lambda: [entry for name in names for entry in self._matches(name, rest)],
        )

    def _matches(self, key: str, rest: Sequence[str]) -> Iterator[Entry]:
        """Yield the objects below a key whose further names match. A directory that cannot be listed holds none."""
        if not rest:
            if (entry := self._entry(key)) is not None:
                yield entry
            return
        names = [rest[0]]
        if rest[0] == "*":
            try:
                names = [name for name in os.listdir(self.root / key) if not name.startswith(".")]
            except OSError:
                return
        for name in names:
            yield from self._matches(f"{key}/{name}", rest[1:])

    def _entry(self, key: str) -> Entry | None:
        path = self.root / key
        try:
            status = path.stat()
        except (FileNotFoundError, NotADirectoryError) as error:
            if not path.is_symlink():
                return None
            return Entry(key=key, size_bytes=0, etag=f"unreadable {error.errno}")  # a dangling link
        except OSError as error:
            return Entry(key=key, size_bytes=0, etag=f"unreadable {error.errno}")
        return Entry(key=key, size_bytes=status.st_size, etag=file_etag(status))


def download_seconds(size_bytes: int) -> float:
    """Return the time that a download of this size may take."""
    return 3 * _READ_SECONDS + size_bytes / LEAST_BYTES_PER_SECOND


def file_etag(status: os.stat_result) -> str:
    """Return an opaque value that changes whenever the file does."""
    identity = f"{status.st_dev}:{status.st_ino}:{status.st_mtime_ns}:{status.st_size}"
    return hashlib.sha256(identity.encode()).hexdigest()[:32]
