"""torch.compile: no recompilation for other adapters or row counts, its step beside the plain one, and a CUDA graph."""

import time
from functools import partial

import torch

from benchmarks.gpu_check.checks import Check, Skipped
from benchmarks.gpu_check.kit import Kit
from benchmarks.gpu_check.measuring import relative_error, seconds_of, synchronize
from benchmarks.gpu_check.subjects.adapters import ATTENTION, random_adapter
from benchmarks.gpu_check.subjects.inputs import Inputs
from longcat.errors import DeviceError
from longcat.model.device.choice import check_compiler
from longcat.sampling.forward import Forward
from longcat.sampling.slots import AdapterSlots

_RANK = 16
_LARGEST_ERROR = 2e-2
"""The compiler fuses operations, which then round once instead of several times."""


def run(kit: Kit) -> None:
    """Compile and replay."""
    kit.checks.run("other adapters and row counts recompile nothing", partial(_compile, kit))
    kit.checks.run("a step in a CUDA graph", partial(_graph, kit))


def _compile(kit: Kit, check: Check) -> None:
    try:
        check_compiler(kit.device)
    except DeviceError as error:
        raise Skipped(str(error)) from error
    transformer = kit.model.transformer()
    slots = AdapterSlots(transformer, count=2, rank=_RANK, device=kit.device, dtype=kit.model.dtype, whole=True)
    compiled, plain = Forward(transformer, kit.device, compiled=True), Forward(transformer, kit.device)

    def step(rows: int, forward: Forward, slot: int) -> torch.Tensor:
        inputs = Inputs.make(kit.model, rows=rows, side_px=kit.model.side_px)
        return inputs.ours(forward, slots.gather([((slot, 1.0),)] * rows))()

    slots.load(0, random_adapter(transformer, seed=0, rank=_RANK, endings=ATTENTION))
    begin = time.monotonic()
    for rows in (1, 2, 3):
        step(rows, compiled, 0)
    synchronize(kit.device)
    check.note(compile_s=time.monotonic() - begin)
    slots.load(1, random_adapter(transformer, seed=1, rank=4, endings=ATTENTION))
    with torch.compiler.set_stance("fail_on_recompile"):
        for rows in (4, 2, 1):
            difference = relative_error(step(rows, compiled, 1), step(rows, plain, 1))
            check.require(
                difference < _LARGEST_ERROR, f"{rows} rows differ from the plain forward's by {difference:.2g}"
            )
    inputs = Inputs.make(kit.model, rows=2, side_px=kit.model.side_px)
    times = [seconds_of(inputs.ours(forward), kit.device, rounds=kit.rounds) for forward in (compiled, plain)]
    check.note(ms=times[0] * 1000, plain_ms=times[1] * 1000, of_plain=times[0] / times[1], relative_error=difference)


def _graph(kit: Kit, check: Check) -> None:
    if kit.settings.is_cpu:
        raise Skipped("a CPU has no CUDA graphs")
    forward = Forward(kit.model.transformer(), kit.device)
    step = Inputs.make(kit.model, rows=2, side_px=kit.model.side_px).ours(forward)
    plain, expected = seconds_of(step, kit.device, rounds=kit.rounds), step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = step()
    seconds = seconds_of(graph.replay, kit.device, rounds=kit.rounds)
    check.note(ms=seconds * 1000, plain_ms=plain * 1000, of_plain=seconds / plain)
    check.require(relative_error(replayed, expected) < _LARGEST_ERROR, "a replayed step has other results")
