"""The evaluations of a training: their schedule, the best adapter, and their part of a checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffusers import LongCatImageTransformer2DModel

from longcat.adapter.weights.lora import LoraWeights
from longcat.problem import Problem
from trainer.loop.evaluation.held_out_loss import HeldOutLoss
from trainer.model.lora import load_weights
from trainer.record.progress import RunProgress
from trainer.record.report_card import EvaluationRecord, ReportCard, StrengthRecord

_STRENGTHS = (0.0, 0.5, 0.75, 1.0, 1.25)
"""Strengths of the sweep."""
_SWEPT = 8
"""Probes of the sweep: enough for the shape of a curve, at the cost of two or three evaluations."""
_BUDGET = 0.045
"""Most share of a training's work that evaluations make, unless their interval is given."""
_FORWARD = 0.5
"""Work of a forward, as a share of a training step's of one picture: LoRA's backward pass costs about as much again."""
_MOST = 20
"""Most evaluations of a training, unless their interval is given."""


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """The options of evaluations, under their names in ``TrainConfig``."""

    train_batch_size: int
    gradient_accumulation_steps: int
    eval_steps_interval: int
    publish_checkpoint: str
    early_stopping_patience: int


class Evaluations:
    """The evaluations of one run. Every process makes them together, and comes to the same results."""

    def __init__(
        self,
        settings: EvaluationSettings,
        held_out: HeldOutLoss | None,
        progress: RunProgress,
        *,
        steps: int,
        processes: int,
    ) -> None:
        """``held_out`` is None if no picture is held out: there are no evaluations then. ``steps`` of the whole run."""
        self._settings = settings
        self._held_out = held_out
        self._progress = progress
        self._steps = steps
        probes = held_out.records if held_out else ()
        self.card = ReportCard(probes=probes, patience=settings.early_stopping_patience)
        self.best: LoraWeights | None = None
        """The adapter of the best evaluation so far."""
        pictures = settings.train_batch_size * settings.gradient_accumulation_steps * processes
        self._interval = settings.eval_steps_interval or interval_of(steps, pictures=pictures, probes=len(probes))
        if held_out is not None:
            progress.report(self.card)

    @property
    def is_over(self) -> bool:
        """True if the training stops early."""
        return self.card.is_stopped

    def is_due(self, step: int) -> bool:
        """Return True if this step is to be evaluated, and has not been."""
        if self._held_out is None or step == 0 or self.card.at(step) is not None:
            return False
        return step % self._interval == 0 or step >= self._steps

    def run(self, step: int, weights: LoraWeights) -> None:
        """Evaluate the adapter that the transformer has at this moment; ``weights`` are a copy of it."""
        assert self._held_out is not None
        self._progress.phase("evaluating")
        if not self.card.base:
            self._update(base=self._held_out.losses(strength=0))
        made = EvaluationRecord(step=step, losses=self._held_out.losses())
        self._update(evaluations=(*self.card.evaluations, made))
        if self.card.best == made:
            self.best = weights
        self._progress.report(self.card, evaluated=made)

    def chosen(self, step: int, last: LoraWeights) -> tuple[int, LoraWeights]:
        """Return the step and the weights of the adapter to publish. ``last`` are the weights after the last step."""
        best = self.card.best
        if self._settings.publish_checkpoint == "best" and best is not None and self.best is not None:
            step, last = best.step, self.best
        self._update(published_step=step)
        return step, last

    def sweep(self, transformer: LongCatImageTransformer2DModel, weights: LoraWeights) -> None:
        """Compute the loss over the strengths of the adapter to publish. Training cannot go on afterwards."""
        if self._held_out is None:
            return
        self._progress.phase("evaluating")
        load_weights(transformer, weights, field="publish_checkpoint", source=self._settings.publish_checkpoint)
        part = ReportCard(probes=self.card.probes[:_SWEPT])
        self._update(
            strengths=tuple(
                StrengthRecord(
                    strength=strength, loss=part.loss(self._held_out.losses(strength=strength, first=_SWEPT))
                )
                for strength in _STRENGTHS
            )
        )
        self._progress.report(self.card)

    def state(self) -> dict[str, Any]:
        """Return the part of a checkpoint's state that evaluations need, beside the best adapter."""
        return {"report": self.card.model_dump_json()} if self._held_out is not None else {}

    def restore(self, state: Mapping[str, Any], best: LoraWeights | None) -> None:
        """Continue after a checkpoint. Evaluations of other held-out pictures cannot be compared, and are left out."""
        if self._held_out is None or "report" not in state:
            return
        before = ReportCard.model_validate_json(state["report"])
        if before.probes != self.card.probes:
            self._progress.warn(_OTHER_HELD_OUT)
            return
        self._update(base=before.base, evaluations=before.evaluations)
        self.best = best
        self._progress.report(self.card)

    def _update(self, **changes: Any) -> None:
        self.card = ReportCard(**{name: getattr(self.card, name) for name in ReportCard.model_fields} | changes)


def interval_of(steps: int, *, pictures: int, probes: int) -> int:
    """Return the steps between evaluations that keep within the budget. ``pictures`` of a training step.

    The base and the last step are evaluated in any case.
    """
    if not probes:
        return steps
    forwards = _BUDGET / _FORWARD * steps * pictures - len(_STRENGTHS) * min(_SWEPT, probes)
    made = int(min(_MOST + 1, max(2, forwards / probes)))
    return max(1, -(-steps // (made - 1)))


_OTHER_HELD_OUT = Problem(
    code="resumed_with_other_held_out",
    template="the held-out pictures have changed since the checkpoint; its evaluations are left out of the report card",
)
