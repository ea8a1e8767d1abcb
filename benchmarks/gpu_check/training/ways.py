"""Other ways to train: each optimizer, DoRA, all layers, group offloading with and without checkpointing."""

from functools import partial

from benchmarks.gpu_check.checks import Check, Skipped
from benchmarks.gpu_check.kit import Kit
from benchmarks.gpu_check.subjects.trainings import DTYPE
from benchmarks.gpu_check.training.steps import measure, sides_px
from benchmarks.memory_plan import PlanCase

_OPTIMIZERS = ("adamw", "adamw-schedulefree", "prodigy", "adamw8bit")


def run(kit: Kit) -> None:
    """Measure each at the smaller size, over an int8 base."""
    make = partial(
        PlanCase, precision="int8-torchao", dtype=str(DTYPE).removeprefix("torch."), side_px=sides_px(kit)[0]
    )
    for optimizer in _OPTIMIZERS[2:3] if kit.settings.is_short else _OPTIMIZERS:
        kit.checks.run(f"optimizer {optimizer}", partial(measure, kit, make(optimizer=optimizer), None))
    kit.checks.run("DoRA", partial(measure, kit, make(dora=True), None))
    kit.checks.run("all linear layers", partial(measure, kit, make(targets="all-linear", every=1), None))
    for offload_type in ("block_level", "leaf_level"):
        for every in (int(offload_type == "leaf_level"),) if kit.settings.is_short else (0, 1):
            way = "every block checkpointed" if every else "nothing checkpointed"
            kit.checks.run(
                f"group offload, {offload_type}, {way}", partial(_offloaded, kit, make(every=every), offload_type)
            )


def _offloaded(kit: Kit, case: PlanCase, offload_type: str, check: Check) -> None:
    if kit.settings.is_cpu:
        raise Skipped("offloading moves weights off a GPU")
    measure(kit, case, offload_type, check)
