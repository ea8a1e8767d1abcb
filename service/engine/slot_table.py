"""The slot table: the adapter loaded in each slot, the number of images that use it, and the order of eviction.

The step loop alone calls it, between steps.
"""

import logging
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from longcat.adapter.manifest import Manifest
from longcat.adapter.weights.lora import LoraWeights
from longcat.model.device.errors import free_memory, is_device_lost, is_out_of_memory
from longcat.sampling.slots import AdapterSlots

log = logging.getLogger("lithograph")


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """One version of an adapter, verified, in main memory."""

    manifest: Manifest
    weights: LoraWeights

    @property
    def digest(self) -> str:
        """Return the SHA-256 of its file: the key of every cache, because names can move to other files."""
        return self.manifest.weights.sha256


@dataclass(frozen=True, kw_only=True)
class LoadedAdapter:
    """An adapter in a slot."""

    reference: str
    pictures: int
    """Images being denoised with it."""


class SlotTable:
    """Loaded adapters by digest, least recently used first."""

    def __init__(self, slots: AdapterSlots) -> None:
        self.slots = slots
        self.loads = 0
        self.evictions = 0
        self._loaded: OrderedDict[str, tuple[int, str]] = OrderedDict()
        """Digest to slot and ``name@version``."""
        self._empty = list(range(slots.count))
        self._uses: Counter[str] = Counter()
        """Images being denoised, by digest: a slot in use is never evicted."""
        self._pinned: dict[str, Adapter] = {}
        self._failed: set[str] = set()
        """Pinned adapters whose loading failed: not tried again before a request names them, or pins change."""

    @property
    def loaded(self) -> tuple[LoadedAdapter, ...]:
        """Return the loaded adapters, least recently used first. May be read from any thread."""
        return tuple(
            LoadedAdapter(reference=ref, pictures=self._uses[digest]) for digest, (_, ref) in list(self._loaded.items())
        )

    def acquire(self, adapters: Sequence[Adapter]) -> tuple[int, ...] | None:
        """Return a slot for each adapter, in use by one more image; load those that have none.

        Returns None, and changes nothing, if too few slots are empty or can be evicted. If loading raises, such as for
        want of device memory, none is in use by that image, and the slot of the adapter that failed is empty.
        """
        missing, idle = self._changes(adapters, self._uses)
        if len(missing) > len(self._empty) + len(idle):
            return None
        for adapter in missing:
            if not self._empty:
                self._evict(idle.pop(0))
            self._load(adapter)
        for adapter in adapters:
            self._uses[adapter.digest] += 1
            self._loaded.move_to_end(adapter.digest)
        return tuple(self._loaded[adapter.digest][0] for adapter in adapters)

    def has_slots(self, adapters: Sequence[Adapter], *, without: Iterable[Sequence[Adapter]]) -> bool:
        """Return True if ``acquire`` would find slots, were these images' adapters released before."""
        uses = self._uses.copy()
        for released in without:
            uses.subtract(adapter.digest for adapter in released)
        missing, idle = self._changes(adapters, uses)
        return len(missing) <= len(self._empty) + len(idle)

    def _changes(self, adapters: Sequence[Adapter], uses: Counter[str]) -> tuple[list[Adapter], list[str]]:
        """Return the adapters to load, and the digests of those that can be evicted."""
        needed = {adapter.digest: adapter for adapter in adapters}
        missing = [adapter for digest, adapter in needed.items() if digest not in self._loaded]
        return missing, [d for d in self._loaded if not uses[d] and d not in needed and d not in self._pinned]

    def release(self, adapters: Sequence[Adapter]) -> None:
        """Decrement the images that use these adapters; the adapters stay loaded until they are evicted."""
        self._uses.subtract(adapter.digest for adapter in adapters)

    def pin(self, adapters: Collection[Adapter]) -> None:
        """Protect these adapters from eviction, and no others."""
        self._pinned = {adapter.digest: adapter for adapter in adapters}
        self._failed.clear()

    def load_pinned(self) -> None:
        """Load the pinned adapters that have no slot, as far as slots are free or can be evicted.

        What fails is logged; a request that names the adapter gets the error. Raises for a lost device alone.
        """
        for digest, adapter in self._pinned.items():
            if digest in self._loaded or digest in self._failed:
                continue
            try:
                if self.acquire([adapter]) is not None:
                    self.release([adapter])
            except Exception as error:  # any, such as out of memory: requests continue
                if is_device_lost(error):
                    raise
                self._failed.add(digest)
                log.warning("the pinned adapter %s cannot be loaded: %s", adapter.manifest.reference, error)

    def _load(self, adapter: Adapter) -> None:
        slot = self._empty[-1]
        failure = self._attempt(slot, adapter)
        if failure is not None and is_out_of_memory(failure):
            free_memory(failure)
            failure = self._attempt(slot, adapter)
        if failure is not None:
            raise failure
        self._empty.pop()
        self._loaded[adapter.digest] = (slot, adapter.manifest.reference)
        self.loads += 1

    def _attempt(self, slot: int, adapter: Adapter) -> Exception | None:
        """Load an adapter; return the exception that it raises, for a repetition outside its handler."""
        try:
            self.slots.load(slot, adapter.weights)
        except Exception as error:  # any: the caller raises it
            return error
        return None

    def _evict(self, digest: str) -> None:
        slot, _ = self._loaded.pop(digest)
        self._empty.append(slot)
        self.evictions += 1
