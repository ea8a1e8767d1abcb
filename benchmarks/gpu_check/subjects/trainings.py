"""A training of random batches on the device: the trainer's own functions, without data, caches and records."""

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_check.checks import Figure
from benchmarks.gpu_check.kit import Kit
from benchmarks.gpu_check.measuring import GIB, PeakMemory, seconds_of
from benchmarks.memory_plan import PlanCase, noise
from longcat.model.precision import Offload, Precision
from longcat.model.quantized.quantize import check_precision, quantize_base
from trainer.config.settings import select
from trainer.loop.optimizer import OptimizerSettings, make_optimizer
from trainer.loop.step import Batch, loss_of
from trainer.memory.plan import plan
from trainer.model.checkpointing import checkpoint_blocks
from trainer.model.lora import LoraSettings, inject
from trainer.model.offload import PlacementSettings, place

DTYPE = torch.bfloat16


class RepeatedTraining:
    """A frozen base with an adapter, an optimizer, and a batch that is repeated."""

    def __init__(self, kit: Kit, case: PlanCase, *, offload_type: str | None = None) -> None:
        """``offload_type``: block_level or leaf_level; None keeps the base on the device.

        Raises ``UserError`` if the device does not support the precision.
        """
        self._kit, self._case, self._offload = kit, case, offload_type
        offload = Offload.NONE if offload_type is None else Offload.GROUP
        precision = Precision(case.precision)
        check_precision(precision, device=kit.device)
        self._memory = PeakMemory(kit.device)
        self._transformer = transformer = kit.model.transformer().to(DTYPE)
        quantize_base(transformer, precision, device=kit.device, training=True, offload=offload)
        parameters = inject(transformer, select(case.config, LoraSettings))
        if case.every:
            checkpoint_blocks(transformer, every=case.every)
        placement = PlacementSettings(
            fsdp_enable=False, enable_group_offload=offload_type is not None, group_offload_type=offload_type or "",
            group_offload_blocks_per_group=2,
        )  # fmt: skip
        place(transformer, placement, kit.device)
        transformer.train()
        self._parameters = parameters
        self._optimizer = make_optimizer(parameters, select(case.config, OptimizerSettings))
        self._batch = batch_of(kit, case)
        self.changed = 0
        """Parameters that ``measure`` has changed."""

    def step(self) -> float:
        """Make an optimizer's step; return the loss."""
        loss = loss_of(self._transformer, self._batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0, foreach=True)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return float(loss)

    def measure(self) -> dict[str, Figure]:
        """Return the seconds of a step, the first and the last loss, and the peak beside the plan's."""
        before = [parameter.detach().clone() for parameter in self._parameters]
        first = self.step()
        memory = PeakMemory(self._kit.device)
        seconds = seconds_of(self.step, self._kit.device, rounds=self._kit.rounds)
        figures: dict[str, Figure] = {"ms": seconds * 1000, "first_loss": first, "last_loss": self.step()}
        self.changed = sum(not torch.equal(*pair) for pair in zip(before, self._parameters, strict=True))
        if peak := memory.peak_bytes:
            planned = self._planned_bytes()
            figures |= {"peak_gib": peak / GIB, "planned_gib": planned / GIB, "plan_over_peak": planned / peak}
        return figures

    def _planned_bytes(self) -> int:
        workload = replace(
            self._case.workload(self._kit.model.flavour), device=self._kit.device.type, validation=False,
            offload=self._offload is not None,
        )  # fmt: skip
        return plan(workload).peak_bytes["training"]


def batch_of(kit: Kit, case: PlanCase) -> Batch:
    """Return a batch of noise on the device."""
    batch = noise(case, kit.model.flavour, DTYPE)
    moved: dict[str, Any] = {
        field.name: value.to(kit.device)
        for field in fields(batch)
        if isinstance(value := getattr(batch, field.name), Tensor)
    }
    return replace(batch, **moved)
