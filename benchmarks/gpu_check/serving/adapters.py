"""Adapters: the cost of eight adapters in a step of eight rows, the time of loading a slot, and the memory of the slots."""

import time
from functools import partial

from benchmarks.gpu_check.checks import Check
from benchmarks.gpu_check.kit import Kit
from benchmarks.gpu_check.measuring import GIB, PeakMemory, relative_error, seconds_of, synchronize
from benchmarks.gpu_check.subjects.adapters import ALL_LAYERS, ATTENTION, random_adapter
from benchmarks.gpu_check.subjects.inputs import Inputs
from longcat.sampling.forward import Forward
from longcat.sampling.slots import AdapterSlots

_ADAPTERS = 8


def run(kit: Kit) -> None:
    """Measure both kinds of adapters."""
    transformer = kit.model.transformer()
    forward = Forward(transformer, kit.device)
    for rank, layers, endings in ((16, "attention", ATTENTION), (64, "all layers", ALL_LAYERS)):
        name = f"8 rows with 8 adapters, rank {rank}, {layers}"
        kit.checks.run(name, partial(_measure, kit, forward, rank, endings))


def _measure(kit: Kit, forward: Forward, rank: int, endings: tuple[str, ...], check: Check) -> None:
    memory = PeakMemory(kit.device)
    slots = AdapterSlots(forward.transformer, count=_ADAPTERS, rank=rank, device=kit.device, dtype=kit.model.dtype)
    check.note(slots_gib=slots.buffers.nbytes / GIB)
    check.note(load_ms=1000 * _fill(kit, slots, forward, rank, endings))
    rows = _ADAPTERS if kit.settings.is_full else 4
    inputs = Inputs.make(kit.model, rows=rows, side_px=kit.model.side_px)
    plain, updates = inputs.ours(forward), slots.gather([((row % _ADAPTERS, 1.0),) for row in range(rows)])
    adapted = inputs.ours(forward, updates)
    without, with_adapters = (seconds_of(step, kit.device, rounds=kit.rounds) for step in (plain, adapted))
    check.note(ms=with_adapters * 1000, without_ms=without * 1000, ratio=with_adapters / without, **memory.figures())
    changes = [relative_error(a, b) for a, b in zip(adapted(), plain(), strict=True)]
    check.require(min(changes) > 0, "an adapter does not change its row")


def _fill(kit: Kit, slots: AdapterSlots, forward: Forward, rank: int, endings: tuple[str, ...]) -> float:
    """Fill all slots; return the seconds of the last load."""
    adapter = random_adapter(forward.transformer, seed=0, rank=rank, endings=endings)
    for slot in range(slots.count):
        synchronize(kit.device)
        begin = time.perf_counter()
        slots.load(slot, adapter)
        synchronize(kit.device)
    return time.perf_counter() - begin
