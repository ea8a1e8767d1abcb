"""Storage in a directory, local or on a shared volume: files are created by link and replaced by rename under a lock.

On a file system without hard links, such as exFAT and some network mounts, files are created by rename under the same lock.
"""

import contextlib
import errno
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from longcat.errors import StorageConflictError, StorageError, StorageMissingError
from longcat.storage.disk import disk_full, is_disk_full, needing_room
from longcat.storage.interface import MAX_OBJECT_BYTES, Blob, Entry, Storage, check_key
from longcat.storage.tree import FileTree, file_etag

_CHUNK_BYTES = 8 * 2**20
_UNSUPPORTED = frozenset(
    {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOLCK, errno.EXDEV}
)
"""Errors of file systems that do not support hard links, locks or modes."""
_ATTEMPTS = 10


class FileStorage(Storage):
    """Objects as files below a directory: a local disk or a shared volume."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._tree = FileTree(self._root)
        self.uri = self._tree.uri

    def probe(self) -> None:
        """List the root directory."""
        with _file_errors(self.uri):
            self._tree.probe()

    def find(self, *patterns: str) -> Iterator[Entry]:
        """Visit as many directory levels as the patterns have."""
        with _file_errors(self.uri):
            for pattern in patterns:
                yield from self._tree.find(pattern)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """List all files, except those being written."""
        top = self._root / prefix.rpartition("/")[0]
        with _file_errors(self.uri):
            for folder, folders, names in os.walk(top, onerror=_unless_missing):
                folders[:] = [name for name in folders if not name.startswith(".")]
                for name in names:
                    path = Path(folder, name)
                    key = path.relative_to(self._root).as_posix()
                    if name.startswith(".") or not key.startswith(prefix):
                        continue
                    with contextlib.suppress(FileNotFoundError):  # removed since it was listed
                        try:
                            status = path.stat()
                        except OSError:  # a dangling link
                            status = path.lstat()
                        yield Entry(key=key, size_bytes=status.st_size, etag=file_etag(status))

    def read(self, key: str, *, max_bytes: int = MAX_OBJECT_BYTES) -> Blob:
        """Read a regular file."""
        with _file_errors(f"{self.uri}/{key}"):
            return self._tree.read(key, max_bytes=max_bytes)

    def download(self, key: str, target: Path, *, max_bytes: int | None = None) -> None:
        """Copy a regular file to ``target``."""
        with _file_errors(f"{self.uri}/{key}"), needing_room(target):
            self._tree.copy(key, target, max_bytes=max_bytes)

    def create(self, key: str, content: bytes | Path) -> str:
        """Write a temporary file and link it to the key; the link fails if the key is taken."""
        path = self._path(key)
        with _file_errors(f"{self.uri}/{key}"), self._temporary_file(path, content) as partial:
            try:
                os.link(partial, path)
            except OSError as error:
                if error.errno not in _UNSUPPORTED and not _is_dangling(path):
                    raise
                self._rename_to_new(partial, path)
            return file_etag(path.stat())

    def replace(self, key: str, content: bytes, *, etag: str) -> str:
        """Compare and rename under the lock that all writers of this directory take."""
        path = self._path(key)
        with _file_errors(f"{self.uri}/{key}"), self._temporary_file(path, content) as partial, self._locked():
            if not path.exists() or file_etag(path.stat()) != etag:
                raise StorageConflictError(
                    "storage_key_changed",
                    "{uri} has changed since it was read",
                    remedy="read it again",
                    uri=f"{self.uri}/{key}",
                )
            partial.rename(path)
            return file_etag(path.stat())

    def delete(self, key: str) -> None:
        """Remove the file, and the directories that become empty. Nothing is removed through a link to a directory."""
        path = self._path(key)
        for parent in path.parents[: len(path.relative_to(self._root).parts) - 1]:
            if parent.is_symlink():
                raise StorageError(
                    "storage_key_linked",
                    "{uri} is reached by the symbolic link {link}",
                    remedy="remove the link, or what it leads to",
                    uri=f"{self.uri}/{key}",
                    link=str(parent),
                )
        with _file_errors(f"{self.uri}/{key}"):
            path.unlink(missing_ok=True)
            self._remove_empty_folders(path)

    def _rename_to_new(self, partial: Path, path: Path) -> None:
        """Rename under the lock, if the path is free or a dangling link. Without hard links, all writers come here."""
        with self._locked():
            if os.path.lexists(path) and not _is_dangling(path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
            partial.rename(path)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of all writers of this storage, which ends with the process that holds it."""
        path = self._root / ".lock"
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "rb") as stream:
            _set_mode(path, 0o666)  # for publishers that run as other users
            try:
                fcntl.flock(stream, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
                raise StorageError(
                    "storage_without_locks",
                    "{uri} is on a file system without file locks, which keep publishers from overwriting each other",
                    remedy="mount it with locks, or use another directory or an S3 bucket",
                    uri=self.uri,
                ) from error
            yield

    def _remove_empty_folders(self, path: Path) -> None:
        """Remove the directories above a path, below the root, that are empty."""
        for parent in path.parents:
            if parent == self._root:
                return
            try:
                parent.rmdir()
            except OSError:  # not empty, or another writer is creating a file in it
                return

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    @contextlib.contextmanager
    def _temporary_file(self, path: Path, content: bytes | Path) -> Iterator[Path]:
        """Write a hidden file with the content, synced to disk, in the key's directory; remove it on exit."""
        handle, partial = _new_file(path)
        try:
            with os.fdopen(handle, "wb") as stream:
                if isinstance(content, bytes):
                    stream.write(content)
                else:
                    with content.open("rb") as source:
                        _copy(source, stream)
                stream.flush()
                os.fsync(stream.fileno())
            _set_mode(partial, 0o644)  # mkstemp's 0600 would hide it from a service that runs as another user
            yield partial
        finally:
            partial.unlink(missing_ok=True)
            self._remove_empty_folders(path)


@contextlib.contextmanager
def _file_errors(uri: str) -> Iterator[None]:
    """Convert a file system's errors to ours."""
    try:
        yield
    except FileNotFoundError as error:
        raise StorageMissingError("storage_key_missing", "{uri} does not exist", uri=uri) from error
    except FileExistsError as error:
        raise StorageConflictError(
            "storage_key_taken", "{uri} exists already and is never overwritten", uri=uri
        ) from error
    except OSError as error:
        if is_disk_full(error):
            raise disk_full(Path(unquote(urlsplit(uri).path))) from error
        raise StorageError(
            "storage_file_error",
            "{uri} cannot be read or written: {reason}",
            remedy="check the path, its permissions and the disk",
            uri=uri,
            reason=error.strerror or str(error),
        ) from error


def _new_file(path: Path) -> tuple[int, Path]:
    """Create a hidden, empty file beside a path, and its directory; return its descriptor and its path."""
    for _ in range(_ATTEMPTS):
        # Another writer removes the directory when it finds it empty: between any two of these calls.
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
            return handle, Path(name)
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path.parent))


def _is_dangling(path: Path) -> bool:
    """Return True for a symbolic link to nothing, which reads as a missing key."""
    return path.is_symlink() and not path.exists()


def _set_mode(path: Path, mode: int) -> None:
    """Set a file's mode where the file system has modes; elsewhere, its mount options decide."""
    try:
        path.chmod(mode)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


def _unless_missing(error: OSError) -> None:
    """Ignore a directory that is missing, which counts as empty; raise for one that cannot be read."""
    if not isinstance(error, FileNotFoundError):
        raise error


def _copy(source: BinaryIO, target: BinaryIO) -> None:
    while chunk := source.read(_CHUNK_BYTES):
        target.write(chunk)
