"""The slot table: the adapter loaded in each slot, the number of images that use it, and the order of eviction.

The step loop alone calls it, between steps.
"""

from collections import Counter, OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from longcat.adapter.manifest import Manifest
from longcat.adapter.weights.lora import LoraWeights
from longcat.sampling.slots import AdapterSlots


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

    @property
    def loaded(self) -> tuple[LoadedAdapter, ...]:
        """Return the loaded adapters, least recently used first. May be read from any thread."""
        return tuple(
            LoadedAdapter(reference=ref, pictures=self._uses[digest]) for digest, (_, ref) in list(self._loaded.items())
        )

    def acquire(self, adapters: Sequence[Adapter]) -> tuple[int, ...] | None:
        """Return a slot for each adapter, in use by one more image; load those that have none.

        Returns None, and changes nothing, if too few slots are empty or can be evicted.
        """
        needed = {adapter.digest: adapter for adapter in adapters}
        missing = [adapter for digest, adapter in needed.items() if digest not in self._loaded]
        idle = [d for d in self._loaded if not self._uses[d] and d not in needed and d not in self._pinned]
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

    def release(self, adapters: Sequence[Adapter]) -> None:
        """Decrement the images that use these adapters; the adapters stay loaded until they are evicted."""
        self._uses.subtract(adapter.digest for adapter in adapters)

    def pin(self, adapters: Collection[Adapter]) -> None:
        """Protect these adapters from eviction, and no others."""
        self._pinned = {adapter.digest: adapter for adapter in adapters}

    def load_pinned(self) -> None:
        """Load the pinned adapters that have no slot, as far as slots are free or can be evicted."""
        for digest, adapter in self._pinned.items():
            if digest not in self._loaded and self.acquire([adapter]) is not None:
                self.release([adapter])

    def _load(self, adapter: Adapter) -> None:
        slot = self._empty.pop()
        self.slots.load(slot, adapter.weights)
        self._loaded[adapter.digest] = (slot, adapter.manifest.reference)
        self.loads += 1

    def _evict(self, digest: str) -> None:
        slot, _ = self._loaded.pop(digest)
        self._empty.append(slot)
        self.evictions += 1
