"""Storage in a directory, local or on a shared volume: files appear by link or rename, replaced under a lock."""

import contextlib
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from longcat.errors import StorageConflictError, StorageError, StorageMissingError
from longcat.storage import Blob, Entry, Storage, check_key

_CHUNK_BYTES = 8 * 2**20


class FileStorage(Storage):
    """Objects as files below a directory: a local disk or a shared volume."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self.uri = self._root.as_uri()

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Walks the directory; files that are being written are not seen."""
        with _file_errors(self.uri):
            for folder, folders, names in os.walk(self._root, onerror=_unless_missing):
                folders[:] = [name for name in folders if not name.startswith(".")]
                for name in names:
                    path = Path(folder, name)
                    key = path.relative_to(self._root).as_posix()
                    if name.startswith(".") or not key.startswith(prefix):
                        continue
                    with contextlib.suppress(FileNotFoundError):  # removed since it was listed
                        yield Entry(key=key, size_bytes=path.stat().st_size, etag=_file_etag(path.stat()))

    def read(self, key: str) -> Blob:
        """The file and the etag of what was read, also while it is being replaced."""
        with _file_errors(f"{self.uri}/{key}"), self._path(key).open("rb") as stream:
            return Blob(content=stream.read(), etag=_file_etag(os.fstat(stream.fileno())))

    def download(self, key: str, target: Path) -> None:
        """Copy into ``target``."""
        with _file_errors(f"{self.uri}/{key}"), self._path(key).open("rb") as source, target.open("xb") as copy:
            _copy(source, copy)

    def create(self, key: str, content: bytes | Path) -> str:
        """Write beside the key and link: the link fails if the key is taken."""
        path = self._path(key)
        with _file_errors(f"{self.uri}/{key}"), self._written_beside(path, content) as partial:
            os.link(partial, path)
            return _file_etag(path.stat())

    def replace(self, key: str, content: bytes, *, etag: str) -> str:
        """Compare and rename under a lock that all writers of this directory take."""
        path = self._path(key)
        with _file_errors(f"{self.uri}/{key}"), self._written_beside(path, content) as partial, _locked(path.parent):
            if not path.exists() or _file_etag(path.stat()) != etag:
                raise StorageConflictError(f"{self.uri}/{key} has changed since it was read; read it again")
            partial.rename(path)
            return _file_etag(path.stat())

    def delete(self, key: str) -> None:
        """Remove the file, and directories that it leaves empty."""
        path = self._path(key)
        with _file_errors(f"{self.uri}/{key}"):
            path.unlink(missing_ok=True)
            for parent in path.parents:
                if parent == self._root:
                    return
                try:
                    parent.rmdir()
                except OSError:  # not empty, or another writer is putting something there
                    return

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    @contextlib.contextmanager
    def _written_beside(self, path: Path, content: bytes | Path) -> Iterator[Path]:
        """A hidden file with the content, on disk for good, in the key's directory; gone afterwards."""
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        partial = Path(name)
        try:
            with os.fdopen(handle, "wb") as stream:
                if isinstance(content, bytes):
                    stream.write(content)
                else:
                    with content.open("rb") as source:
                        _copy(source, stream)
                stream.flush()
                os.fsync(stream.fileno())
            partial.chmod(0o644)  # mkstemp's 0600 would hide it from a service that runs as another user
            yield partial
        finally:
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _file_errors(what: str) -> Iterator[None]:
    """A file system's errors as ours."""
    try:
        yield
    except FileNotFoundError as error:
        raise StorageMissingError(f"{what} is not there") from error
    except FileExistsError as error:
        raise StorageConflictError(f"{what} is there already; it is never overwritten") from error
    except OSError as error:
        raise StorageError(
            f"{what}: {error.strerror or error}; check the path, its permissions and the disk"
        ) from error


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / ".lock").open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _unless_missing(error: OSError) -> None:
    """A directory that is gone holds nothing; one that cannot be read is not the same as an empty one."""
    if not isinstance(error, FileNotFoundError):
        raise error


def _file_etag(status: os.stat_result) -> str:
    identity = f"{status.st_ino}:{status.st_mtime_ns}:{status.st_size}"
    return hashlib.sha256(identity.encode()).hexdigest()[:32]


def _copy(source: BinaryIO, target: BinaryIO) -> None:
    while chunk := source.read(_CHUNK_BYTES):
        target.write(chunk)
