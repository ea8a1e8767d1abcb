"""The forward: against diffusers' results, and its time beside diffusers' and beside the least possible."""

from functools import partial

from benchmarks.gpu_check.checks import Check
from benchmarks.gpu_check.kit import Kit
from benchmarks.gpu_check.measuring import PeakMemory, relative_error, seconds_of
from benchmarks.gpu_check.serving.ceilings import product_flop_per_second, product_side
from benchmarks.gpu_check.subjects.inputs import Inputs, row_flop
from benchmarks.gpu_check.subjects.pictures import EngineRun
from longcat.sampling.forward import Forward

_LARGEST_ERROR = 1e-2
_GOAL_STEPS = 50


def run(kit: Kit) -> None:
    """Compare and measure."""
    kit.checks.run("one block of each kind equals diffusers'", partial(_equality, kit, True))
    kit.checks.run("the whole forward equals diffusers'", partial(_equality, kit, False))
    transformer = kit.model.transformer()
    forward = Forward(transformer, kit.device)
    speed = product_flop_per_second(kit.device, kit.model.dtype, side=product_side(kit))
    for side_px in kit.sides_px:
        for rows in _row_counts(kit, side_px):
            kit.checks.run(f"step, {rows} rows, {side_px} px", partial(_step, kit, forward, rows, side_px, speed))
    del forward, transformer
    kit.checks.run(f"picture, {kit.model.side_px} px, {_GOAL_STEPS} steps, guidance", partial(_picture, kit))


def _row_counts(kit: Kit, side_px: int) -> tuple[int, ...]:
    if kit.settings.is_short or not kit.settings.is_full:
        return (1, 2) if kit.settings.is_short else (1, 2, 4)
    return (1, 2) if side_px > 1024 else (1, 2, 4, 8, 12)


def _equality(kit: Kit, is_block: bool, check: Check) -> None:
    changes = {"num_layers": 1, "num_single_layers": 1} if is_block and kit.model.is_random else {}
    transformer = kit.model.transformer(**changes)
    if is_block and not changes:  # of real weights
        transformer.transformer_blocks = transformer.transformer_blocks[:1]
        transformer.single_transformer_blocks = transformer.single_transformer_blocks[:1]
    inputs = Inputs.make(kit.model, rows=2, side_px=kit.model.side_px)
    error = relative_error(inputs.ours(Forward(transformer, kit.device))(), inputs.theirs(transformer))
    check.note(relative_error=error)
    check.require(error < _LARGEST_ERROR, f"the relative error is {error:.2g}, and {_LARGEST_ERROR:.2g} is allowed")


def _step(kit: Kit, forward: Forward, rows: int, side_px: int, speed: float, check: Check) -> None:
    inputs = Inputs.make(kit.model, rows=rows, side_px=side_px)
    step = inputs.ours(forward)
    memory = PeakMemory(kit.device)
    ours = seconds_of(step, kit.device, rounds=kit.rounds)
    figures = memory.figures()
    floor = rows * row_flop(kit.model, side_px) / speed
    check.note(ms=ours * 1000, floor_ms=floor * 1000, over_floor=ours / floor, **figures)
    theirs = seconds_of(lambda: inputs.theirs(forward.transformer), kit.device, rounds=kit.rounds)
    check.note(diffusers_ms=theirs * 1000, of_diffusers=ours / theirs)


def _picture(kit: Kit, check: Check) -> None:
    pictures = EngineRun(kit.model.components())
    steps = 2 if kit.settings.is_short else _GOAL_STEPS
    pictures.submit("first", steps=1)
    pictures.run()
    memory = PeakMemory(kit.device)
    pictures.submit("picture", steps=steps, guidance_scale=4.5)
    check.note(s=pictures.run(), steps=steps, **memory.figures())
    check.require(bool(pictures.pixels("picture").std() > 0), "the picture is of one colour")
