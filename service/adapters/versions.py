"""Versions that requests pin, as in ``ink@3``."""

import threading

from longcat.adapter.artifact import manifest_in, read_manifest_file
from longcat.adapter.manifest import Manifest
from longcat.storage.interface import Storage
from service.adapters.cache import AdapterCache
from service.adapters.listing import AdapterListing


class NamedVersions:
    """A cache of manifests of pinned versions, valid until a listing has other ETags. Thread-safe."""

    def __init__(self, storage: Storage, cache: AdapterCache) -> None:
        self._storage = storage
        self._cache = cache
        self._lock = threading.Lock()
        self._manifests: dict[tuple[str, int], tuple[str, Manifest]] = {}
        """Manifests with their ETags."""

    def manifest(self, name: str, version: int) -> Manifest:
        """Return a version's manifest, checked. Raises ``AdapterError`` or ``StorageError``."""
        with self._lock:
            known = self._manifests.get((name, version))
        if known is None:
            stored = read_manifest_file(self._storage, name, version)
            manifest = manifest_in(stored, name, version)
            self._cache.check(manifest)
            known = stored.etag, manifest
            with self._lock:
                self._manifests[name, version] = known
        return known[1]

    def keep_unchanged(self, listing: AdapterListing) -> None:
        """Drop the manifests that have changed or were removed."""
        with self._lock:
            self._manifests = {
                key: known for key, known in self._manifests.items() if known[0] == listing.manifest_etag(*key)
            }
