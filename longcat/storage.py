"""Shared storage for adapters: ``file://`` directories and ``s3://`` prefixes behind one small interface.

Keys are relative, ``/``-separated names. A key's content appears whole or not at all, and can be created only if absent or
replaced only if unchanged, so that writers on different machines need no lock of their own.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from longcat.errors import StorageError

_KEY = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*$")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What is stored under a key."""

    key: str
    size_bytes: int
    etag: str
    """Changes whenever the content does; opaque."""


@dataclass(frozen=True, kw_only=True)
class Blob:
    """A small object, read whole."""

    content: bytes
    etag: str


class Storage(ABC):
    """Atomic objects by key. Every method raises ``StorageError`` when the storage cannot be reached or refuses."""

    uri: str

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Everything whose key starts with ``prefix``, in no particular order."""

    @abstractmethod
    def read(self, key: str) -> Blob:
        """A small object. Raises ``StorageMissingError``."""

    @abstractmethod
    def download(self, key: str, target: Path) -> None:
        """A large object into a new file. Raises ``StorageMissingError``."""

    @abstractmethod
    def create(self, key: str, content: bytes | Path) -> str:
        """Store under a key that is not taken; its etag. Raises ``StorageConflictError`` if it is."""

    @abstractmethod
    def replace(self, key: str, content: bytes, *, etag: str) -> str:
        """Replace what has this etag; the new etag. Raises ``StorageConflictError`` if it has changed or is gone."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove a key; nothing happens if it is not there."""


def open_storage(uri: str, *, endpoint_url: str | None = None) -> Storage:
    """Storage at ``file:///directory`` or ``s3://bucket/prefix``.

    S3 takes region and credentials from the usual AWS chain; ``endpoint_url`` is for stores that are not AWS.
    """
    parts = urlsplit(uri)
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path:
        from longcat.file_storage import FileStorage

        return FileStorage(Path(unquote(parts.path)))
    if parts.scheme == "s3" and parts.netloc:
        from longcat.s3_storage import S3Storage  # boto3 takes a while to import, and file:// needs none of it

        return S3Storage(parts.netloc, parts.path.strip("/"), endpoint_url=endpoint_url)
    raise StorageError(f"storage {uri!r} is neither file:///directory nor s3://bucket/prefix")


def check_key(key: str) -> str:
    """The key, if it is one that may be written. Raises ``StorageError``."""
    if not _KEY.match(key):
        raise StorageError(f"key {key!r}: use letters, digits, '.', '_' and '-', starting with a letter or digit")
    return key
