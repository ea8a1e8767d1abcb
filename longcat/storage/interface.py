"""The interface of shared storage: ``file://`` directories and ``s3://`` prefixes.

Keys are relative names, separated by ``/``. A key's content appears whole or not at all. A key can be created only if it is
absent and replaced only if it is unchanged, so that writers on different machines need no lock of their own.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from longcat.errors import StorageError

MAX_OBJECT_BYTES = 64 * 2**20
"""Size of the largest object that is read into memory."""

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A stored object as it is listed."""

    key: str
    size_bytes: int
    etag: str
    """An opaque value that changes whenever the content changes."""


@dataclass(frozen=True, kw_only=True)
class Blob:
    """A small object, read whole."""

    content: bytes
    etag: str


class Storage(ABC):
    """Atomic objects by key. Every method raises ``StorageError`` if the storage cannot be reached or denies access.

    Reading methods have a deadline, after which they raise ``StorageTimeoutError``; in a directory they open regular files
    only.
    """

    uri: str

    @abstractmethod
    def probe(self) -> None:
        """Raise ``StorageError`` unless the storage can be listed: distinguishes an outage from a broken object."""

    @abstractmethod
    def find(self, *patterns: str) -> Iterator[Entry]:
        """List the objects whose keys match one of the patterns, in no particular order; ``*`` stands for one name.

        Links are followed, as in reading. An object that cannot be read is listed too, and reading it raises the reason.
        """

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[Entry]:
        """List the objects whose key starts with ``prefix``, in no particular order. Links are not followed."""

    @abstractmethod
    def read(self, key: str, *, max_bytes: int = MAX_OBJECT_BYTES) -> Blob:
        """Read a small object. Raises ``StorageMissingError``, and ``StorageError`` if it has more than ``max_bytes``."""

    @abstractmethod
    def download(self, key: str, target: Path, *, max_bytes: int | None = None) -> None:
        """Download a large object into a new file. Raises as ``read``; ``max_bytes`` also sets the deadline."""

    @abstractmethod
    def create(self, key: str, content: bytes | Path) -> str:
        """Store a new object and return its etag. Raises ``StorageConflictError`` if the key is taken."""

    @abstractmethod
    def replace(self, key: str, content: bytes, *, etag: str) -> str:
        """Replace the object with this etag; return the new etag. Raises ``StorageConflictError`` if it changed."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove a key, if it exists."""


def check_key(key: str) -> str:
    """Return the key if it may be written. Raises ``StorageError``."""
    if not _KEY.fullmatch(key):
        raise StorageError(
            "storage_key_invalid",
            "not a valid key",
            remedy="use letters, digits, '.', '_' and '-', starting with a letter or digit",
            field="key",
            value=key,
        )
    return key


def too_large(uri: str, max_bytes: int | None) -> StorageError:
    """Return the error of an object with more bytes than are read."""
    return StorageError(
        "storage_object_too_large",
        "{uri} has more than {max_bytes} bytes",
        remedy="check what was stored there",
        uri=uri,
        max_bytes=max_bytes,
    )
