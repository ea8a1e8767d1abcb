"""A training step: time, and peak memory against the plan, by size, precision and checkpointing; beside a bare loop."""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model

from benchmarks.gpu_check.checks import Check, Skipped
from benchmarks.gpu_check.kit import Kit
from benchmarks.gpu_check.measuring import GIB, PeakMemory, seconds_of
from benchmarks.gpu_check.subjects.trainings import DTYPE, RepeatedTraining, batch_of
from benchmarks.memory_plan import PlanCase
from longcat.adapter.modules import linear_modules
from longcat.errors import UserError
from trainer.config.targets import lora_targets

_PRECISIONS = ("no_change", "int8-torchao", "int8-quanto", "fp8-torchao", "int4-quanto")
_DTYPE_NAME = str(DTYPE).removeprefix("torch.")


def run(kit: Kit) -> None:
    """Measure every combination; the bare loop first, because the goals are about it."""
    sides = sides_px(kit)
    kit.checks.run(f"bare peft loop, {sides[0]} px", partial(_bare, kit, sides[0]))
    for side_px in sides:
        for precision in _PRECISIONS[1:2] if kit.settings.is_short else _PRECISIONS:
            for every in (0, 1):
                case = PlanCase(precision=precision, dtype=_DTYPE_NAME, side_px=side_px, every=every)
                way = "every block checkpointed" if every else "nothing checkpointed"
                kit.checks.run(f"{precision}, {side_px} px, {way}", partial(measure, kit, case, None))


def sides_px(kit: Kit) -> tuple[int, ...]:
    """Return the sides of the pictures that are trained on, the smaller first."""
    sides = (512, 1024) if kit.settings.is_full else (64,)
    return sides[:1] if kit.settings.is_short else sides


def measure(kit: Kit, case: PlanCase, offload_type: str | None, check: Check) -> None:
    """Train for a few steps; the loss must be finite, the adapter must change, and the peak must not exceed the plan."""
    try:
        training = RepeatedTraining(kit, case, offload_type=offload_type)
    except UserError as error:
        raise Skipped(f"refused before loading: {error}") from error
    figures = training.measure()
    check.note(**figures)
    check.require(math.isfinite(float(figures["last_loss"])), "the loss is not finite")
    check.require(training.changed > 0, "the adapter does not change")
    if kit.settings.is_full and "plan_over_peak" in figures:
        check.require(float(figures["plan_over_peak"]) >= 1, "a step takes more memory than planned")


def _bare(kit: Kit, side_px: int, check: Check) -> None:
    """Measure a loop as one writes it first: peft, AdamW, diffusers' forward; and the trainer's step beside it."""
    case = PlanCase(dtype=_DTYPE_NAME, side_px=side_px)
    memory = PeakMemory(kit.device)
    bare = seconds_of(_bare_step(kit, case), kit.device, rounds=kit.rounds)
    check.note(ms=bare * 1000)
    if peak := memory.peak_bytes:
        check.note(peak_gib=peak / GIB)
    ours = float(RepeatedTraining(kit, case).measure()["ms"])
    check.note(trainer_ms=ours, trainer_of_bare=ours / bare / 1000)


def _bare_step(kit: Kit, case: PlanCase) -> Callable[[], None]:
    transformer = kit.model.transformer().to(DTYPE)
    names = lora_targets(linear_modules(transformer), "attention")
    inject_adapter_in_model(LoraConfig(r=16, lora_alpha=16, lora_dropout=0.1, target_modules=names), transformer)
    parameters = [parameter for parameter in transformer.train().parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    optimizer, batch = torch.optim.AdamW(parameters, lr=1e-4, fused=True), batch_of(kit, case)

    def step() -> None:
        with torch.autocast(kit.device.type, DTYPE):
            predicted = transformer(
                hidden_states=batch.noisy_BNC, timestep=batch.sigma_B, encoder_hidden_states=batch.embeds_BLJ,
                txt_ids=batch.text_ids_L3, img_ids=batch.image_ids_N3, return_dict=False,
            )[0]  # fmt: skip
        F.mse_loss(predicted.float(), batch.target_BNC).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
