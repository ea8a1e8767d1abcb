"""Where a dataset's files are: a directory, or a bucket. No torch.

Keys are paths relative to it, with ``/``. Hidden files and directories are left aside.
"""

import os
import stat
import tempfile
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath

from longcat.errors import DataError, StorageError, StorageMissingError
from longcat.storage import Entry, Storage
from trainer.dataset_config import DatasetConfig


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What is in a source: its files in order, and what could not be looked at."""

    entries: tuple[Entry, ...]
    unreadable: tuple[tuple[str, str], ...] = ()
    """Keys and reasons."""
    _by_name: dict[str, Entry] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, entries: Iterable[Entry], unreadable: Iterable[tuple[str, str]] = ()) -> "Listing":
        """In order of keys."""
        ordered = tuple(sorted(entries, key=lambda entry: entry.key))
        by_name = {same_name(entry.key): entry for entry in reversed(ordered)} | {e.key: e for e in ordered}
        return cls(entries=ordered, unreadable=tuple(sorted(unreadable)), _by_name=by_name)

    def find(self, key: str) -> Entry | None:
        """The file of that name; in other case or Unicode form, if there is none of exactly that."""
        return self._by_name.get(key) or self._by_name.get(same_name(key))


def same_name(key: str) -> str:
    """One form for names that differ in case, or in how an accent is encoded: macOS splits it off."""
    return unicodedata.normalize("NFC", key).casefold()


_Entries = list[Entry]
_Reasons = list[tuple[str, str]]


class Source(ABC):
    """Files by key, to be read only."""

    @abstractmethod
    def list(self) -> Listing:
        """Everything there. Raises ``DataError`` or ``StorageError`` if it cannot be looked at at all."""

    @abstractmethod
    def read(self, key: str) -> bytes:
        """A file's content. Raises ``DataError`` if this one cannot be read."""


class FolderSource(Source):
    """A directory with its subdirectories; links are followed, into each directory once."""

    def __init__(self, root: Path, *, dataset: str) -> None:
        self._root = root.expanduser()
        self._dataset = dataset

    def list(self) -> Listing:
        """Walks it; what cannot be looked at comes with its reason."""
        where = f"dataset {self._dataset!r} instance_data_dir {str(self._root)!r}"
        if not self._root.exists():
            raise DataError(f"{where} is not there; relative paths start at {Path.cwd()}")
        if not self._root.is_dir():
            raise DataError(f"{where} is no directory; give the one that holds the pictures")
        entries: list[Entry] = []
        unreadable: list[tuple[str, str]] = []
        seen: set[tuple[int, int]] = set()

        def refused(error: OSError) -> None:
            unreadable.append((self._key(error.filename), f"cannot be looked into: {error.strerror or error}"))

        for folder, folders, names in os.walk(self._root, onerror=refused, followlinks=True):
            identity = _identity(folder)
            if identity in seen:
                folders.clear()
                unreadable.append((self._key(folder), "is a link to a directory that has been searched already"))
                continue
            seen.add(identity)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in names:
                if not name.startswith("."):
                    self._look_at(Path(folder, name), entries, unreadable)
        return Listing.of(entries, unreadable)

    def read(self, key: str) -> bytes:
        """The file's content."""
        try:
            return (self._root / key).read_bytes()
        except FileNotFoundError as error:
            raise DataError("is not there") from error
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror or error}") from error

    def _look_at(self, path: Path, entries: _Entries, unreadable: _Reasons) -> None:
        key = self._key(path)
        try:
            status = path.stat()
        except OSError as error:
            what = "is a link to nothing" if path.is_symlink() else f"cannot be looked at: {error.strerror or error}"
            unreadable.append((key, what))
            return
        if not stat.S_ISREG(status.st_mode):
            unreadable.append((key, "is no regular file"))
            return
        mark = f"{status.st_ino}:{status.st_mtime_ns}:{status.st_size}"
        entries.append(Entry(key=key, size_bytes=status.st_size, etag=mark))

    def _key(self, path: str | Path) -> str:
        return Path(path).relative_to(self._root).as_posix()


class S3Source(Source):
    """Objects below a prefix of an S3 bucket."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def list(self) -> Listing:
        """Pages through it."""
        return Listing.of(
            entry
            for entry in self._storage.list()
            if not entry.key.endswith("/") and not any(p.startswith(".") for p in PurePosixPath(entry.key).parts)
        )

    def read(self, key: str) -> bytes:
        """By way of a file: unlike a plain GET, that takes up again what a broken connection left."""
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder, "object")
            try:
                self._storage.download(key, target)
            except StorageMissingError as error:
                raise DataError("is not there") from error
            except StorageError as error:
                if _is_refused(error):
                    raise DataError("cannot be read: the store refuses it, by permissions or as archived") from error
                raise
            return target.read_bytes()


def open_source(config: DatasetConfig) -> Source:
    """The source of a dataset's files; buckets are opened once a process."""
    if config.type == "aws":
        return _bucket(str(config.aws_bucket_name), config.aws_data_prefix.strip("/"), config.aws_endpoint_url)
    return FolderSource(Path(str(config.instance_data_dir)), dataset=config.id)


def source_name(config: DatasetConfig) -> str:
    """What tells one source from another."""
    if config.type == "aws":
        return f"{config.aws_endpoint_url or ''} {config.uri}".strip()
    return str(Path(str(config.instance_data_dir)).expanduser().absolute())


def _identity(folder: str) -> tuple[int, int]:
    """What is the same for one directory, whatever links lead to it."""
    try:
        status = os.stat(folder)
    except OSError as error:
        raise DataError(f"{folder} went away while it was searched: {error.strerror or error}; try again") from error
    return status.st_dev, status.st_ino


@lru_cache(maxsize=64)
def _bucket(name: str, prefix: str, endpoint_url: str | None) -> S3Source:
    from longcat.s3_storage import S3Storage  # boto3 takes a while to import, and a directory needs none of it

    return S3Source(S3Storage(name, prefix, endpoint_url=endpoint_url))


def _is_refused(error: StorageError) -> bool:
    """Whether the store answered that this object is not to be had, as opposed to not answering."""
    response = getattr(error.__cause__, "response", {})
    return bool(response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 403)
