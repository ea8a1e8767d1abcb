"""Who sits in which adapter slot: pictures hold slots while they are drawn; the rest stay until somebody needs the room.

The step loop alone calls this, between steps.
"""

from collections import Counter, OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from longcat.adapter import Manifest
from longcat.lora import LoraWeights
from longcat.slots import AdapterSlots


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """One version of an adapter, verified, in main memory."""

    manifest: Manifest
    weights: LoraWeights

    @property
    def digest(self) -> str:
        """SHA-256 of its file: what it is, whatever it is called."""
        return self.manifest.weights.sha256


@dataclass(frozen=True, kw_only=True)
class Occupant:
    """What a slot holds, for people to see."""

    reference: str
    pictures: int
    """That are being drawn with it."""


class SlotTable:
    """Slots by digest, least recently used first."""

    def __init__(self, slots: AdapterSlots) -> None:
        self.slots = slots
        self.loads = 0
        self.evictions = 0
        self._seated: OrderedDict[str, tuple[int, str]] = OrderedDict()
        """Digest to slot and ``name@version``."""
        self._empty = list(range(slots.count))
        self._holds: Counter[str] = Counter()
        self._pinned: dict[str, Adapter] = {}

    @property
    def occupants(self) -> tuple[Occupant, ...]:
        """What is loaded, least recently used first."""
        return tuple(
            Occupant(reference=ref, pictures=self._holds[digest]) for digest, (_, ref) in list(self._seated.items())
        )

    def acquire(self, adapters: Sequence[Adapter]) -> tuple[int, ...] | None:
        """Hold a slot for each adapter, loading those that have none; None, and nothing held, if there is no room now."""
        wanted = {adapter.digest: adapter for adapter in adapters}
        missing = [adapter for digest, adapter in wanted.items() if digest not in self._seated]
        idle = [d for d in self._seated if not self._holds[d] and d not in wanted and d not in self._pinned]
        if len(missing) > len(self._empty) + len(idle):
            return None
        for adapter in missing:
            if not self._empty:
                self._evict(idle.pop(0))
            self._seat(adapter)
        for adapter in adapters:
            self._holds[adapter.digest] += 1
            self._seated.move_to_end(adapter.digest)
        return tuple(self._seated[adapter.digest][0] for adapter in adapters)

    def release(self, adapters: Sequence[Adapter]) -> None:
        """A picture that held these is done with them; they stay loaded."""
        self._holds.subtract(adapter.digest for adapter in adapters)

    def pin(self, adapters: Collection[Adapter]) -> None:
        """Keep these in slots from now on, and no others."""
        self._pinned = {adapter.digest: adapter for adapter in adapters}

    def seat_pinned(self) -> None:
        """Load what is pinned and has no slot yet, as far as there is room."""
        for digest, adapter in self._pinned.items():
            if digest not in self._seated and self.acquire([adapter]) is not None:
                self.release([adapter])

    def _seat(self, adapter: Adapter) -> None:
        slot = self._empty.pop()
        self.slots.load(slot, adapter.weights)
        self._seated[adapter.digest] = (slot, adapter.manifest.reference)
        self.loads += 1

    def _evict(self, digest: str) -> None:
        slot, _ = self._seated.pop(digest)
        self._empty.append(slot)
        self.evictions += 1
