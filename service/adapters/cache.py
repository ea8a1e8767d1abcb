"""The adapter cache: verified adapters in main memory, then files on disk, then storage.

A slot is loaded from main memory in milliseconds. Everything goes by the SHA-256 of the weights, because the content of a
name, and even of a version, can be replaced.

All methods may be called from any thread.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from longcat.adapter.manifest import Manifest, WeightsIdentity
from longcat.adapter.verification import check_manifest
from longcat.adapter.weights.file import parse_lora
from longcat.adapter.weights.lora import LoraWeights
from longcat.errors import AdapterError
from longcat.storage.interface import Storage
from service.adapters.downloads import Downloads
from service.engine.slot_table import Adapter
from service.observability import metrics


@dataclass(frozen=True, kw_only=True)
class Checks:
    """The conditions for serving an adapter. Each check raises ``AdapterError``."""

    manifest: Callable[[Manifest], None]
    """Checks before the weights are downloaded."""
    weights: Callable[[LoraWeights], None]


class AdapterCache:
    """The most recently used adapters of one storage, for one base model."""

    def __init__(
        self,
        storage: Storage,
        *,
        base_hash: str,
        checks: Checks,
        staged: Callable[[LoraWeights], LoraWeights],
        folder: Path,
        memory_bytes: int,
        disk_bytes: int,
    ) -> None:
        """Start with an empty memory.

        ``staged``: puts checked weights where slots are loaded from. ``folder``: the downloads, which other processes may
        share.
        """
        self._storage = storage
        self._base_hash = base_hash
        self._checks = checks
        self._staged = staged
        self._downloads = Downloads(folder, max_bytes=disk_bytes)
        self._memory_bytes = memory_bytes
        self._lock = threading.Lock()
        self._weights: OrderedDict[WeightsIdentity, LoraWeights] = OrderedDict()
        """Weights, least recently used first."""
        self._loading: dict[tuple[str, WeightsIdentity], Future[LoraWeights]] = {}
        """Downloads under way, which several requests can wait for. Each version has its own: the same weights may be
        damaged in another."""

    def check(self, manifest: Manifest) -> None:
        """Raise ``AdapterError`` if an adapter cannot be served, as far as its manifest shows."""
        if manifest.base.hash != self._base_hash:
            raise AdapterError(
                "adapter_other_base",
                "is for base model {flavour} {base}, and {served} is served",
                remedy="use an adapter that was trained on the served model",
                field="adapter",
                value=manifest.reference,
                flavour=manifest.base.flavour,
                base=manifest.base.hash[:12],
                served=self._base_hash[:12],
            )
        try:
            self._checks.manifest(manifest)
        except AdapterError as error:
            raise error.within(field="adapter", value=manifest.reference) from error

    def get(self, manifest: Manifest) -> Adapter:
        """Return the adapter of a checked manifest: from memory, else from disk, else from storage.

        Raises ``AdapterError`` if it is damaged or does not fit, and ``StorageError`` if the download fails.
        """
        place = manifest.reference, manifest.weights
        with self._lock:
            if (known := self._weights.get(manifest.weights)) is not None:
                self._weights.move_to_end(manifest.weights)
            is_first = known is None and place not in self._loading
            loading = self._loading.setdefault(place, Future()) if known is None else Future()
        if known is not None:
            metrics.ADAPTER_CACHE.labels("memory").inc()
            loading.set_result(known)
        elif is_first:
            self._load(manifest, loading)
        weights = loading.result()
        try:
            check_manifest(weights, manifest)  # for each manifest: several versions can have the same weights
        except AdapterError as error:
            raise error.within(field="adapter", value=manifest.reference) from error
        return Adapter(manifest=manifest, weights=weights)

    def drop(self, manifest: Manifest) -> None:
        """Remove a version's weights from memory."""
        with self._lock:
            self._weights.pop(manifest.weights, None)

    def _load(self, manifest: Manifest, loading: Future[LoraWeights]) -> None:
        begin, place = time.monotonic(), (manifest.reference, manifest.weights)
        try:
            metrics.ADAPTER_CACHE.labels("disk" if self._downloads.holds(manifest) else "storage").inc()
            content = self._downloads.content(self._storage, manifest)
            try:
                weights = parse_lora(content, Path("adapter.safetensors"))
                self._checks.weights(weights)
                weights = self._staged(weights)
            except AdapterError as error:
                raise error.within(field="adapter", value=manifest.reference) from error
        except BaseException as error:  # any: every waiting request gets it
            with self._lock:
                del self._loading[place]
            loading.set_exception(error)
            return
        with self._lock:
            self._weights[manifest.weights] = weights
            del self._loading[place]
            self._shrink_memory()
        loading.set_result(weights)
        metrics.ADAPTER_LOAD_SECONDS.observe(time.monotonic() - begin)

    def _shrink_memory(self) -> None:
        total = sum(identity.size_bytes for identity in self._weights)
        while len(self._weights) > 1 and total > self._memory_bytes:
            identity, _ = self._weights.popitem(last=False)
            total -= identity.size_bytes
