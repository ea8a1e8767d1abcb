"""The report card on a training's page: a curve, a table, and the nearest training pictures. No torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from longcat.problem import Problem
from trainer.record.report_card import BANDS, EvaluationRecord, NearestRecord, ReportCard
from trainer.record.report_text import findings_of, shown_validation
from trainer.record.run_file import RunRecord, ValidationRecord

_WIDTH, _HEIGHT, _MARGIN = 600, 160, 8
"""Size and margin of the chart, in SVG units."""
_MOST_ROWS = 40
"""Rows of the table; the best evaluation and the last one are always among them."""

Curve = Literal["all", "zh", "en", "other"]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of the table."""

    step: int | None
    """None for the base model."""
    losses: tuple[float, ...]
    """Loss over all probes, of each language, of each band of noise levels."""
    is_best: bool
    is_kept: bool


@dataclass(frozen=True, kw_only=True)
class ReportView:
    """The values that the page shows."""

    findings: tuple[Problem, ...]
    card: ReportCard | None
    """None before the first evaluation."""
    lines: tuple[Line, ...]
    curves: tuple[tuple[Curve, str], ...]
    """Name and points of each curve in a chart of 600 by 160; empty with fewer than two evaluations."""
    lowest: float
    highest: float
    """``lowest`` and ``highest`` are the losses at the lower and upper edge of the chart."""
    bands: tuple[tuple[float, float], ...]
    """Lowest and highest noise level of each band."""
    validation: ValidationRecord | None
    nearest: tuple[NearestRecord, ...]

    @property
    def seen(self) -> str:
        """Return a key of the view, which changes when the view does."""
        made = self.card.evaluations[-1].step if self.card and self.card.evaluations else 0
        return f"{made}-{self.validation.step if self.validation else 0}-{len(self.card.strengths) if self.card else 0}"


def report_view(run: RunRecord | None) -> ReportView | None:
    """Return the view of a run; None if it has neither evaluations nor validations yet."""
    if run is None:
        return None
    card = run.report if run.report and run.report.evaluations else None
    validation = shown_validation(run)
    if card is None and validation is None:
        return None
    curves, lowest, highest = _curves(card)
    return ReportView(
        findings=findings_of(run),
        card=card,
        lines=_lines(card) if card else (),
        curves=curves,
        lowest=lowest,
        highest=highest,
        bands=_bands(card) if card else (),
        validation=validation,
        nearest=validation.nearest if validation else (),
    )


def _lines(card: ReportCard) -> tuple[Line, ...]:
    every = -(-len(card.evaluations) // _MOST_ROWS)
    last = card.evaluations[-1]
    shown = [
        made
        for index, made in enumerate(card.evaluations)
        if index % every == 0 or made in (card.best, last) or made.step == card.published_step
    ]
    return (
        Line(step=None, losses=tuple(card.figures(card.base).values()), is_best=False, is_kept=False),
        *(
            Line(
                step=made.step,
                losses=tuple(card.figures(made.losses).values()),
                is_best=made == card.best,
                is_kept=made.step == card.published_step,
            )
            for made in shown
        ),
    )


def _bands(card: ReportCard) -> tuple[tuple[float, float], ...]:
    sigmas = [[probe.sigma for probe in card.probes if probe.band == band] for band in range(BANDS)]
    return tuple((min(found), max(found)) if found else (math.nan, math.nan) for found in sigmas)


def _curves(card: ReportCard | None) -> tuple[tuple[tuple[Curve, str], ...], float, float]:
    if card is None or len(card.evaluations) < 2:
        return (), 0.0, 0.0
    names: list[Curve] = [*card.languages, "all"] if len(card.languages) > 1 else ["all"]
    values = {name: [_loss(card, made, name) for made in card.evaluations] for name in names}
    finite = [loss for losses in values.values() for loss in losses if math.isfinite(loss)]
    if not finite:
        return (), 0.0, 0.0
    lowest, highest = min(finite), max(finite)
    steps = [made.step for made in card.evaluations]
    return tuple((name, _points(steps, losses, lowest, highest)) for name, losses in values.items()), lowest, highest


def _loss(card: ReportCard, made: EvaluationRecord, name: Curve) -> float:
    return card.loss(made.losses) if name == "all" else card.loss(made.losses, language=name)


def _points(steps: Sequence[int], losses: Sequence[float], lowest: float, highest: float) -> str:
    """Return the points of a polyline, without losses that are not finite."""
    across = (_WIDTH - 2 * _MARGIN) / ((steps[-1] - steps[0]) or 1)
    down = (_HEIGHT - 2 * _MARGIN) / ((highest - lowest) or 1)
    return " ".join(
        f"{_MARGIN + (step - steps[0]) * across:.1f},{_HEIGHT - _MARGIN - (loss - lowest) * down:.1f}"
        for step, loss in zip(steps, losses, strict=True)
        if math.isfinite(loss)
    )
