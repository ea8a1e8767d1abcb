"""The report card of a run, a part of ``run.json``: losses on held-out pictures by step, and findings from them. No torch.

A probe is a held-out picture with a caption, noise and a noise level, which are the same in every evaluation and in every
run: its losses can be compared from step to step and from run to run. The training's noise levels are divided into four
bands, a quarter of them each. The loss of an adapter is the mean of its languages' losses, and each of these is the mean of
its bands'.
"""

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from statistics import fmean
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from longcat.problem import Problem

BANDS = 4
_OVERFIT = 0.02
"""Rise of the loss above its lowest that counts as overfitting: more than the differences between neighbouring evaluations
of a training that has converged."""

Language = Literal["zh", "en", "other"]
Losses = tuple[float, ...]
"""One loss for each probe, in their order."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class ProbeRecord(_Part):
    """A probe."""

    picture: str
    """The dataset's id and the file, ``id/key``."""
    language: Language
    """Language of its caption."""
    sigma: float
    """Noise level, 0 to 1."""
    band: Annotated[int, Field(ge=0, lt=BANDS)]
    """Band of the noise level, 0 for the lowest."""


class EvaluationRecord(_Part):
    """The losses of one step's adapter."""

    step: Annotated[int, Field(ge=0)]
    losses: Losses


class StrengthRecord(_Part):
    """The loss at one strength of the published adapter, on a part of the probes."""

    strength: float
    loss: float


class NearestRecord(_Part):
    """The training picture that a validation picture is nearest to."""

    image: str
    """The validation picture, relative to output_dir."""
    picture: str
    """The training picture: the dataset's id and the file, ``id/key``."""
    distance: float
    """Distance of their latents, 0 for equal ones; see ``trainer.validation.nearest``."""
    share: float
    """The distance, divided by the median distance of training pictures to their nearest neighbours."""
    is_copy: bool


class ReportCard(_Part):
    """The report card."""

    probes: tuple[ProbeRecord, ...] = ()
    base: Losses = ()
    """Losses of the base, without the adapter."""
    evaluations: tuple[EvaluationRecord, ...] = ()
    strengths: tuple[StrengthRecord, ...] = ()
    patience: int = 0
    """Evaluations without a lower loss after which the training stops; 0 never stops early."""
    published_step: int | None = None
    """Step of the adapter that is kept and published; None before the end."""

    @cached_property
    def best(self) -> EvaluationRecord | None:
        """The evaluation with the lowest loss, the first of several; None before the first one."""
        return min(self.evaluations, key=lambda made: _finite(self.loss(made.losses)), default=None)

    @property
    def languages(self) -> list[Language]:
        """The languages of the probes."""
        return [language for language in ("zh", "en", "other") if any(p.language == language for p in self.probes)]

    @property
    def is_stopped(self) -> bool:
        """True if the last ``patience`` evaluations have not lowered the loss."""
        if not self.patience or self.best is None:
            return False
        return len(self.evaluations) - 1 - self.evaluations.index(self.best) >= self.patience

    def until(self, step: int, patience: int) -> "ReportCard":
        """Return the card as it was after a step, with another patience."""
        made = tuple(one for one in self.evaluations if one.step <= step)
        return ReportCard(probes=self.probes, base=self.base, evaluations=made, patience=patience)

    def loss(self, losses: Losses, *, language: Language | None = None, band: int | None = None) -> float:
        """Return the mean of probes' losses, of one language or of one band; NaN if there are none."""
        languages = self.languages if language is None else [language]
        bands = range(BANDS) if band is None else (band,)
        return _mean([_mean([self._cell(losses, one, place) for place in bands]) for one in languages])

    def figures(self, losses: Losses) -> dict[str, float]:
        """Return the loss, each language's and each band's, by their names in records."""
        by_language = {f"loss_{language}": self.loss(losses, language=language) for language in self.languages}
        by_band = {f"loss_sigma_{band + 1}": self.loss(losses, band=band) for band in range(BANDS)}
        return {"loss": self.loss(losses)} | by_language | by_band

    def at(self, step: int) -> EvaluationRecord | None:
        """Return the evaluation of a step; None if there is none."""
        return next((made for made in self.evaluations if made.step == step), None)

    @property
    def improvement(self) -> float | None:
        """Share by which the published or last adapter lowers the base's loss; None before an evaluation."""
        return None if self._shown is None else 1 - self.loss(self._shown.losses) / self.loss(self.base)

    @property
    def overfit(self) -> float | None:
        """Share by which the loss of the published or last adapter exceeds the best one's; None before an evaluation."""
        if self._shown is None or self.best is None:
            return None
        return self.loss(self._shown.losses) / self.loss(self.best.losses) - 1

    @property
    def _shown(self) -> EvaluationRecord | None:
        last = self.evaluations[-1] if self.evaluations else None
        return last if self.published_step is None else self.at(self.published_step) or last

    def _cell(self, losses: Losses, language: Language, band: int) -> float:
        return _mean(
            [
                loss
                for probe, loss in zip(self.probes, losses, strict=True)
                if (probe.language, probe.band) == (language, band)
            ]
        )


def findings(card: ReportCard | None, nearest: Sequence[NearestRecord]) -> Iterator[Problem]:
    """Yield the findings of a run's report: overfitting and copies."""
    if card is None or not card.probes:
        yield Problem(
            code="report_nothing_held_out",
            template="no picture is held out, so that overfitting cannot be measured",
            remedy_template="set eval_share, to 0.1 for example, or give a dataset with dataset_type eval",
        )
    elif card.best is not None:  # else the first evaluation has not been made yet
        yield from _about_losses(card, card.best)
    copies = [one for one in nearest if one.is_copy]
    if copies:
        yield Problem(
            code="report_copies",
            template="{count} of {total} validation pictures copy a training picture: {names}",
            remedy_template="train for fewer steps, or on more pictures",
            details={
                "count": len(copies), "total": len(nearest), "names": ", ".join(one.picture for one in copies[:3]),
            },
        )  # fmt: skip


def _about_losses(card: ReportCard, best: EvaluationRecord) -> Iterator[Problem]:
    last = card.evaluations[-1]
    rise = card.loss(last.losses) / card.loss(best.losses) - 1
    if _finite(card.loss(best.losses)) >= card.loss(card.base):
        yield Problem(
            code="report_no_improvement",
            template="no evaluation has a lower loss on held-out pictures than the base",
            remedy_template="train with a smaller learning_rate, or on more pictures",
        )
    elif rise > _OVERFIT or not math.isfinite(rise):
        yield Problem(
            code="report_overfit",
            template="it overfits: the loss on held-out pictures is lowest after step {best}, and {rise} higher after step "
            "{last}",
            remedy_template="set publish_checkpoint best, or train for about {best} steps",
            details={"best": best.step, "rise": percent(rise), "last": last.step},
        )
    elif best.step == last.step:
        yield Problem(
            code="report_still_improving",
            template="the loss on held-out pictures is lowest after the last step, {last}",
            remedy_template="train for more steps, if the pictures are not yet as you want them",
            details={"last": last.step},
        )
    else:
        yield Problem(
            code="report_converged",
            template="it does not overfit: the loss on held-out pictures is lowest after step {best}, and {rise} higher "
            "after step {last}",
            details={"best": best.step, "rise": percent(rise), "last": last.step},
        )


def percent(share: float) -> str:
    """Return a share as a percentage."""
    return f"{100 * share:.1f}%"


def _mean(values: list[float]) -> float:
    """Return the mean of the values that exist; NaN marks one that does not."""
    known = [value for value in values if not math.isnan(value)]
    return fmean(known) if known else math.nan


def _finite(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf
