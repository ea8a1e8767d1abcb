"""Sources of a dataset's files: a directory, or an S3 bucket. No torch.

Keys are paths relative to the source, with ``/``. Hidden files and directories are skipped.
"""

import os
import stat
import tempfile
import unicodedata
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath

from longcat.errors import DataError, StorageError, StorageMissingError
from longcat.problem import Problem, reason_of
from longcat.storage.interface import Entry, Storage
from trainer.config.dataset_options import DatasetConfig

OUTPUT_MARK = ".lithograph"
"""File in directories that trainings write to. They are left out of the search for pictures: a contact sheet is none."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The files of a source in order, and those that cannot be accessed."""

    entries: tuple[Entry, ...]
    unreadable: tuple[tuple[str, Problem], ...] = ()
    """Keys and problems."""
    _by_name: dict[str, Entry] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, entries: Iterable[Entry], unreadable: Iterable[tuple[str, Problem]] = ()) -> "Listing":
        """Make a listing, in order of keys."""
        ordered = tuple(sorted(entries, key=lambda entry: entry.key))
        by_name = {same_name(entry.key): entry for entry in reversed(ordered)} | {e.key: e for e in ordered}
        return cls(entries=ordered, unreadable=tuple(sorted(unreadable, key=lambda item: item[0])), _by_name=by_name)

    def count(self, name: str) -> int:
        """Return the number of directories with a file of that name, its ending included or not."""
        return len(self._folders[same_name(name)])

    @cached_property
    def _folders(self) -> "defaultdict[str, set[str]]":
        folders: defaultdict[str, set[str]] = defaultdict(set)
        for entry in self.entries:
            path = PurePosixPath(entry.key)
            for name in (path.name, path.stem):
                folders[same_name(name)].add(str(path.parent))
        return folders

    def find(self, key: str) -> Entry | None:
        """Return the file of that name, or else one whose name differs in case or Unicode form."""
        return self._by_name.get(key) or self._by_name.get(same_name(key))


def same_name(key: str) -> str:
    """Return one form for names that differ in case, or in the encoding of an accent, which macOS stores separately."""
    return unicodedata.normalize("NFC", key).casefold()


_Entries = list[Entry]
_Unreadable = list[tuple[str, Problem]]


class Source(ABC):
    """Read-only files by key."""

    @abstractmethod
    def list(self) -> Listing:
        """List all files. Raises ``DataError`` or ``StorageError`` if the source cannot be listed at all."""

    @abstractmethod
    def read(self, key: str) -> bytes:
        """Return a file's content. Raises ``DataError`` if this file cannot be read."""


class FolderSource(Source):
    """A directory with its subdirectories, without those that trainings write to.

    Links are followed inside the directory, into each directory once. One that leads outside is not: what may be read is
    decided by who chose the directory, not by who can put a link into it.
    """

    def __init__(self, root: Path, *, dataset: str) -> None:
        self._root = root.expanduser()
        self._dataset = dataset

    def list(self) -> Listing:
        """Walk the directory; files that cannot be accessed are listed with their problem."""
        self._check_root()
        entries: list[Entry] = []
        unreadable: _Unreadable = []
        seen: set[tuple[int, int]] = set()

        def on_error(error: OSError) -> None:
            problem = Problem(
                code="data_folder_unreadable",
                template="cannot be listed: {cause}",
                details={"cause": reason_of(error)},
            )
            unreadable.append((self._key(error.filename), problem))

        for folder, folders, names in os.walk(self._root, onerror=on_error, followlinks=True):
            identity = _identity(folder)
            if identity in seen:
                folders.clear()
                problem = Problem(
                    code="data_folder_searched_already", template="a link to a directory that has been searched already"
                )
                unreadable.append((self._key(folder), problem))
                continue
            seen.add(identity)
            if folder != str(self._root) and Path(folder, OUTPUT_MARK).exists():
                folders.clear()
                continue
            if not self._is_inside(Path(folder)):
                folders.clear()
                unreadable.append((self._key(folder), _leads_outside()))
                continue
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in names:
                if not name.startswith("."):
                    self._look_at(Path(folder, name), entries, unreadable)
        return Listing.of(entries, unreadable)

    def read(self, key: str) -> bytes:
        """Return the file's content."""
        path = self._root / key
        if not self._is_inside(path):
            raise DataError.of([_leads_outside()])
        try:
            return path.read_bytes()
        except FileNotFoundError as error:
            raise DataError("data_file_missing", "does not exist") from error
        except OSError as error:
            raise DataError("data_file_unreadable", "cannot be read: {cause}", cause=reason_of(error)) from error

    def _is_inside(self, path: Path) -> bool:
        """Return whether a path is in the dataset's directory once all links are followed."""
        return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self._root))

    def _check_root(self) -> None:
        if not self._root.exists():
            raise DataError(
                "dataset_folder_missing",
                "does not exist, for dataset {dataset!r}",
                remedy="check the path; relative paths start at {folder}",
                field="instance_data_dir",
                value=str(self._root),
                dataset=self._dataset,
                folder=str(Path.cwd()),
            )
        if not self._root.is_dir():
            raise DataError(
                "dataset_folder_not_directory",
                "not a directory, for dataset {dataset!r}",
                remedy="give the directory that holds the pictures",
                field="instance_data_dir",
                value=str(self._root),
                dataset=self._dataset,
            )

    def _look_at(self, path: Path, entries: _Entries, unreadable: _Unreadable) -> None:
        key = self._key(path)
        if path.is_symlink() and not self._is_inside(path):
            unreadable.append((key, _leads_outside()))
            return
        try:
            status = path.stat()
        except OSError as error:
            unreadable.append((key, _access_problem(path, error)))
            return
        if not stat.S_ISREG(status.st_mode):
            unreadable.append((key, Problem(code="data_file_not_regular", template="not a regular file")))
            return
        mark = f"{status.st_ino}:{status.st_mtime_ns}:{status.st_size}"
        entries.append(Entry(key=key, size_bytes=status.st_size, etag=mark))

    def _key(self, path: str | Path) -> str:
        return Path(path).relative_to(self._root).as_posix()


class S3Source(Source):
    """Objects under a prefix of an S3 bucket."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def list(self) -> Listing:
        """List all objects, page by page."""
        return Listing.of(
            entry
            for entry in self._storage.list()
            if not _is_folder_marker(entry) and not any(p.startswith(".") for p in PurePosixPath(entry.key).parts)
        )

    def read(self, key: str) -> bytes:
        """Return the object's content, by way of a file: a download resumes after a broken connection, a plain GET not."""
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder, "object")
            try:
                self._storage.download(key, target)
            except StorageMissingError as error:
                raise DataError("data_file_missing", "does not exist") from error
            except StorageError as error:
                if _is_denied(error):
                    raise DataError(
                        "data_object_denied",
                        "the object store denies access",
                        remedy="check its permissions, and that it is not archived",
                    ) from error
                raise
            return target.read_bytes()


def open_source(config: DatasetConfig) -> Source:
    """Open the source of a dataset's files; each bucket is opened once per process."""
    if config.type == "aws":
        return _bucket(str(config.aws_bucket_name), config.aws_data_prefix.strip("/"), config.aws_endpoint_url)
    return FolderSource(Path(str(config.instance_data_dir)), dataset=config.id)


def source_name(config: DatasetConfig) -> str:
    """Return a name that differs between sources."""
    if config.type == "aws":
        return f"{config.aws_endpoint_url or ''} {config.uri}".strip()
    return str(Path(str(config.instance_data_dir)).expanduser().absolute())


def _identity(folder: str) -> tuple[int, int]:
    """Return the device and inode of a directory, which are the same for every link to it."""
    try:
        status = os.stat(folder)
    except OSError as error:
        raise DataError(
            "data_folder_vanished",
            "removed while it was searched: {cause}",
            remedy="try again",
            field="folder",
            value=folder,
            cause=reason_of(error),
        ) from error
    return status.st_dev, status.st_ino


def _access_problem(path: Path, error: OSError) -> Problem:
    if path.is_symlink():
        return Problem(code="data_link_broken", template="a link to a file that does not exist")
    return Problem(
        code="data_file_inaccessible",
        template="cannot be accessed: {cause}",
        details={"cause": reason_of(error)},
    )


def _leads_outside() -> Problem:
    return Problem(
        code="data_link_outside",
        template="a link or path that leads outside of the dataset's directory",
        remedy_template="copy the file there, or give its directory as a dataset of its own",
    )


def _is_folder_marker(entry: Entry) -> bool:
    """Return whether an object stands for a directory, as consoles and Hadoop write them."""
    name = PurePosixPath(entry.key).name
    return entry.size_bytes == 0 and (entry.key.endswith(("/", "_$folder$")) or not name or "." not in name)


@lru_cache(maxsize=64)
def _bucket(name: str, prefix: str, endpoint_url: str | None) -> S3Source:
    from longcat.storage.s3 import S3Storage  # boto3 takes a while to import, and a directory needs none of it

    return S3Source(S3Storage(name, prefix, endpoint_url=endpoint_url))


def _is_denied(error: StorageError) -> bool:
    """Return True if the store answered that access to this object is denied, as opposed to not answering."""
    response = getattr(error.__cause__, "response", {})
    return bool(response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 403)
