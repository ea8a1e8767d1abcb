"""A storage in front of another one that is only read: adapters that come with a model, beside those of its operator."""

from collections.abc import Iterator
from pathlib import Path

from typing_extensions import override

from longcat.errors import StorageMissingError
from longcat.storage.interface import MAX_OBJECT_BYTES, Blob, Entry, Storage


class LayeredStorage(Storage):
    """One storage by keys. Their first part is a name; a name that ``front`` has hides that of ``back`` as a whole.

    All changes go to ``front``.
    """

    def __init__(self, front: Storage, back: Storage) -> None:
        self.uri = front.uri
        self._front = front
        self._back = back

    @override
    def probe(self) -> None:
        self._front.probe()

    @override
    def find(self, *patterns: str) -> Iterator[Entry]:
        found = list(self._front.find(*patterns))
        yield from found
        hidden = {_name(entry.key) for entry in found}
        yield from (entry for entry in self._back.find(*patterns) if _name(entry.key) not in hidden)

    @override
    def list(self, prefix: str = "") -> Iterator[Entry]:
        return self._front.list(prefix)

    @override
    def read(self, key: str, *, max_bytes: int = MAX_OBJECT_BYTES) -> Blob:
        try:
            return self._front.read(key, max_bytes=max_bytes)
        except StorageMissingError:
            if not self._is_behind(key):
                raise
        return self._back.read(key, max_bytes=max_bytes)

    @override
    def download(self, key: str, target: Path, *, max_bytes: int | None = None) -> None:
        try:
            self._front.download(key, target, max_bytes=max_bytes)
        except StorageMissingError:
            if not self._is_behind(key):
                raise
            self._back.download(key, target, max_bytes=max_bytes)

    @override
    def create(self, key: str, content: bytes | Path) -> str:
        return self._front.create(key, content)

    @override
    def replace(self, key: str, content: bytes, *, etag: str) -> str:
        return self._front.replace(key, content, etag=etag)

    @override
    def delete(self, key: str) -> None:
        self._front.delete(key)

    def _is_behind(self, key: str) -> bool:
        """Return whether a key that ``front`` lacks may be of ``back``: not if ``front`` has its name."""
        name = _name(key)
        return next(self._front.find(f"{name}/latest", f"{name}/*/manifest.json"), None) is None


def _name(key: str) -> str:
    return key.partition("/")[0]
