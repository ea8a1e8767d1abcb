"""Little memory: the allocator capped, many pictures at once, a large one, and memory that runs out in a step."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch

from benchmarks.gpu_check.checks import Check, Skipped
from benchmarks.gpu_check.kit import Kit
from benchmarks.gpu_check.measuring import GIB, PeakMemory
from benchmarks.gpu_check.subjects.pictures import EngineRun
from longcat.model.memory.in_use import memory_of
from longcat.model.precision import Offload, Precision
from service.wire.events import ErrorEvent

_PICTURES = 12
_STEPS = 4
_TOGETHER, _LONG = 4, 12
"""Requests of a step that runs out of memory, and their steps: enough to be denoised together."""
_EMBEDDED_MIB = {24: 64, 16: 32}
"""MiB beyond the weights that stand for a card's GiB at the embedded model's size."""


def run(kit: Kit) -> None:
    """Check the engine under caps."""
    for gib, offload in ((24, Offload.NONE), (16, Offload.MODEL)):
        name = f"{_PICTURES} pictures and a large one in {gib} GiB, int8-torchao, offload {offload.value}"
        kit.checks.run(name, partial(_capped, kit, gib, offload))
    kit.checks.run("memory that runs out in a step", partial(_exhausted, kit))


def _capped(kit: Kit, gib: int, offload: Offload, check: Check) -> None:
    _require_gpu(kit)
    precision = Precision.INT8_TORCHAO
    model = kit.model.components(precision=precision, text_encoder_precision=precision, offload=offload)
    pictures = EngineRun(model, background=offload is Offload.NONE)
    used = memory_of(kit.device)["used"]
    cap = gib * GIB if kit.settings.is_full else used + _EMBEDDED_MIB[gib] * 2**20
    check.note(weights_gib=used / GIB, cap_gib=cap / GIB)
    check.require(used < cap, "the weights alone exceed the cap")
    memory = PeakMemory(kit.device)
    with _cap(kit, cap):
        for number in range(3 if kit.settings.is_short else _PICTURES):
            pictures.submit(str(number), steps=_STEPS, seed=number, guidance_scale=4.5)
        side = 2 * kit.model.side_px
        pictures.submit("large", steps=_STEPS, guidance_scale=4.5, width=side, height=side)
        check.note(s=pictures.run(), **memory.figures())
    check.note(forwards_repeated=pictures.engine.out_of_memory)
    failed = {name: str(end.error) for name, end in pictures.outcomes.items() if isinstance(end, ErrorEvent)}
    check.note(failed=len(failed))
    check.require(not failed, f"requests failed: {failed}")


def _exhausted(kit: Kit, check: Check) -> None:
    """Take the memory that a step of several pictures needs; the engine repeats it in parts, and goes on."""
    _require_gpu(kit)
    pictures = EngineRun(kit.model.components())
    _admit(pictures, "free")
    memory = PeakMemory(kit.device)
    pictures.engine.step()
    added = (memory.peak_bytes or 0) - memory.before_bytes
    pictures.run()
    _admit(pictures, "capped")
    with _cap(kit, memory_of(kit.device)["used"] + int(0.7 * added)):
        pictures.engine.step()
    pictures.run()
    check.note(added_gib=added / GIB, forwards_repeated=pictures.engine.out_of_memory)
    check.require(pictures.engine.out_of_memory > 0, "memory did not run out")
    for number in range(_TOGETHER):
        pictures.pixels(f"capped {number}")


def _admit(pictures: EngineRun, name: str) -> None:
    """Submit requests, and step until all are denoised together."""
    for number in range(_TOGETHER):
        pictures.submit(f"{name} {number}", steps=_LONG, seed=number, guidance_scale=4.5)
    while pictures.engine.active_rows < 2 * _TOGETHER:
        Check.require(f"{name} 0" not in pictures.outcomes, "a request was over before the others began")
        pictures.engine.step(0.05)


def _require_gpu(kit: Kit) -> None:
    if kit.settings.is_cpu:
        raise Skipped("a CPU's memory has no cap that torch knows")


@contextmanager
def _cap(kit: Kit, size_bytes: int) -> Iterator[None]:
    """Let torch's allocator have this much memory."""
    torch.cuda.empty_cache()
    total = memory_of(kit.device)["total"]
    torch.cuda.set_per_process_memory_fraction(min(1.0, size_bytes / total), kit.device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, kit.device)
