"""Verified adapters in main memory, from where a slot is loaded in milliseconds; behind them files on disk, then storage.

All methods may be called from any thread.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from longcat.adapter import Manifest, fetch, fetched_file
from longcat.errors import AdapterError
from longcat.lora import LoraWeights, load_lora
from longcat.storage import Storage
from service import metrics
from service.slots import Adapter


class AdapterCache:
    """Adapters of one storage that fit one base model, the most recently used ones."""

    def __init__(
        self,
        storage: Storage,
        *,
        base_hash: str,
        check: Callable[[LoraWeights], None],
        folder: Path,
        memory_bytes: int,
        disk_bytes: int,
    ) -> None:
        """``check`` raises ``AdapterError`` for weights that fit no slot. ``folder``: where downloads are kept."""
        self._storage = storage
        self._base_hash = base_hash
        self._check = check
        self._folder = folder
        self._memory_bytes = memory_bytes
        self._disk_bytes = disk_bytes
        self._lock = threading.Lock()
        self._adapters: OrderedDict[str, Adapter] = OrderedDict()
        """By ``name@version``, least recently used first."""

    def find(self, reference: str) -> Adapter | None:
        """The adapter ``name@version``, if it is in memory."""
        with self._lock:
            if (adapter := self._adapters.get(reference)) is None:
                return None
            self._adapters.move_to_end(reference)
        metrics.ADAPTER_CACHE.labels("memory").inc()
        return adapter

    def get(self, manifest: Manifest) -> Adapter:
        """The adapter of a manifest: from memory, else from disk, else from storage.

        Raises ``AdapterError`` if it is damaged, does not fit, or is another base model's; ``StorageError`` if it cannot be
        downloaded.
        """
        if adapter := self.find(manifest.reference):
            return adapter
        begin = time.monotonic()
        if manifest.base.hash != self._base_hash:
            raise AdapterError(
                f"adapter {manifest.reference} is for base model {manifest.base.flavour} {manifest.base.hash[:12]}, and "
                f"{self._base_hash[:12]} is served here"
            )
        metrics.ADAPTER_CACHE.labels("disk" if fetched_file(manifest, self._folder).exists() else "storage").inc()
        path = fetch(self._storage, manifest, self._folder)
        path.touch()
        try:
            weights = load_lora(path)
            self._check(weights)
        except AdapterError as error:
            raise AdapterError(f"adapter {manifest.reference} {error}") from error
        adapter = Adapter(manifest=manifest, weights=weights)
        with self._lock:
            self._adapters[manifest.reference] = adapter
            self._shrink_memory()
            self._shrink_disk()
        metrics.ADAPTER_LOAD_SECONDS.observe(time.monotonic() - begin)
        return adapter

    def forget(self, name: str) -> None:
        """Drop all versions of a name from memory."""
        with self._lock:
            for reference in [r for r in self._adapters if r.partition("@")[0] == name]:
                del self._adapters[reference]

    def _shrink_memory(self) -> None:
        sizes = {reference: adapter.manifest.weights.size_bytes for reference, adapter in self._adapters.items()}
        while len(self._adapters) > 1 and sum(sizes[reference] for reference in self._adapters) > self._memory_bytes:
            self._adapters.popitem(last=False)

    def _shrink_disk(self) -> None:
        """Remove the files that have not been used for the longest; the newest stays, whatever its size."""
        files = sorted(self._folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime)
        total = sum(path.stat().st_size for path in files)
        for path in files[:-1]:
            if total <= self._disk_bytes:
                break
            total -= path.stat().st_size
            path.unlink()
