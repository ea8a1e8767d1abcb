"""Adapter files on disk, bounded by a size of their own and by the free space of the disk."""

import hashlib
import os
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from longcat.adapter.artifact import fetch, fetched_file
from longcat.adapter.manifest import Manifest
from longcat.storage.disk import disk_full, writing
from longcat.storage.interface import Storage

_RESERVE_SHARE = 0.05
_LARGEST_RESERVE_BYTES = 2**30
_ATTEMPTS = 3
_READERS = 4
"""Number of files read into memory at once."""


class Downloads:
    """The most recently used adapter files. All methods may be called from any thread."""

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._in_use: Counter[Path] = Counter()
        """Files being downloaded or read, which are not evicted."""
        self._underway: list[int] = []
        """Sizes of the downloads under way."""
        self._readers = threading.BoundedSemaphore(_READERS)

    def holds(self, manifest: Manifest) -> bool:
        """Return True if a version's weights need no download."""
        return fetched_file(manifest, self._folder).exists()

    def content(self, storage: Storage, manifest: Manifest) -> bytes:
        """Return the verified bytes of a version's weights; download them if the disk does not have them.

        The bytes are verified in memory: processes that share the directory may replace or evict a file at any time.

        Raises as ``longcat.adapter.artifact.fetch``, and ``DiskFullError`` if evicting other files makes no room.
        """
        path = fetched_file(manifest, self._folder)
        with self._in_use_of(path):
            for _ in range(_ATTEMPTS):
                if (content := self._read(path, manifest)) is not None:
                    return content
                self._download(storage, manifest)
        with tempfile.TemporaryDirectory(dir=self._folder) as private:  # other processes keep evicting it
            return fetch(storage, manifest, Path(private)).read_bytes()

    @contextmanager
    def _in_use_of(self, path: Path) -> Iterator[None]:
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        with self._lock:
            self._in_use[path] += 1
        try:
            yield
        finally:
            with self._lock:
                self._in_use[path] -= 1
                if not self._in_use[path]:
                    del self._in_use[path]

    def _read(self, path: Path, manifest: Manifest) -> bytes | None:
        """Return a file's bytes; None if they do not match the version's checksum."""
        weights = manifest.weights
        with self._readers, suppress(OSError):  # missing, just evicted, or not a file
            if path.is_file() and path.stat().st_size == weights.size_bytes:
                content = path.read_bytes()
                if hashlib.sha256(content).hexdigest() == weights.sha256:
                    os.utime(path)
                    return content
        return None

    def _download(self, storage: Storage, manifest: Manifest) -> None:
        size = manifest.weights.size_bytes
        with self._lock:
            self._make_room(size)
            self._underway.append(size)
        try:
            fetch(storage, manifest, self._folder)
        finally:
            with self._lock:
                self._underway.remove(size)

    def _make_room(self, size_bytes: int) -> None:
        """Evict the least recently used files. Raises ``DiskFullError`` if the disk is too full even then.

        A part of the disk stays free, for metrics, logs and other programs. ``max_bytes`` is exceeded by files in use only.
        """
        disk = shutil.disk_usage(self._folder)
        wanted = size_bytes + sum(self._underway)
        on_disk = disk.free - min(disk.total * _RESERVE_SHARE, _LARGEST_RESERVE_BYTES)
        files = sorted(self._files())
        own = self._max_bytes - sum(size for _, size, _ in files)
        for _, size, path in files:
            if wanted <= min(own, on_disk):
                return
            if path not in self._in_use:
                path.unlink(missing_ok=True)
                own, on_disk = own + size, on_disk + size
        if wanted > on_disk:
            raise disk_full(self._folder)

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """Yield time of last use, size and path of each file. Other processes may delete some meanwhile."""
        for path in self._folder.glob("*.safetensors"):
            with suppress(FileNotFoundError):
                status = path.stat()
                yield status.st_mtime, status.st_size, path
