"""The report card of a run for people and for programs: lines for a terminal, or a JSON object. No torch."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from longcat.problem import Problem
from trainer.record.report_card import BANDS, EvaluationRecord, NearestRecord, ReportCard, findings, percent
from trainer.record.run_file import RunRecord, ValidationRecord

_LANGUAGES = {"zh": "Chinese", "en": "English", "other": "other"}


def shown_validation(record: RunRecord) -> ValidationRecord | None:
    """Return the validation of the published adapter, or else the last one; None if there is none."""
    step = record.report.published_step if record.report else None
    made = [one for one in record.validations if one.step == step] or record.validations
    return made[-1] if made else None


def findings_of(record: RunRecord) -> tuple[Problem, ...]:
    """Return the findings of a run's report; none before its first step, when its held-out pictures are not known."""
    if not record.step:
        return ()
    if record.config.get("distillation") is not None:
        return (
            Problem(
                code="report_distillation",
                template="a distillation has no pictures of its own, so that it has neither overfitting nor copies",
                remedy_template="compare its validation pictures with those of the base at the teacher's steps",
            ),
        )
    validation = shown_validation(record)
    return tuple(findings(record.report, validation.nearest if validation else ()))


def report_json(record: RunRecord) -> dict[str, Any]:
    """Return the report as a JSON object. Losses that are no number are null."""
    card = record.report
    return {
        "run_id": record.run_id,
        "state": record.state,
        "step": record.step,
        "total_steps": record.total_steps,
        "published": record.published,
        "published_step": card.published_step if card else None,
        "best_step": card.best.step if card and card.best else None,
        "stopped_early": bool(card and card.is_stopped),
        "improvement": _number(card.improvement if card else None),
        "overfit": _number(card.overfit if card else None),
        "base": _figures(card, card.base) if card and card.base else None,
        "evaluations": [
            {"step": made.step, **_figures(card, made.losses), "losses": [_number(loss) for loss in made.losses]}
            for made in (card.evaluations if card else ())
            if card
        ],
        "probes": [probe.model_dump() for probe in (card.probes if card else ())],
        "strengths": [
            {"strength": one.strength, "loss": _number(one.loss)} for one in (card.strengths if card else ())
        ],
        "validations": [
            made.model_dump(mode="json", include={"step", "passed", "reasons", "change", "drift", "nearest"})
            for made in record.validations
        ],
        "findings": [
            {"code": found.code, "problem": found.problem, "remedy": found.remedy} for found in findings_of(record)
        ],
        "problems": [str(problem) for problem in record.problems],
    }


def report_text(record: RunRecord) -> str:
    """Return the report as lines for a terminal."""
    return "\n".join(_lines(record))


def _lines(record: RunRecord) -> Iterator[str]:
    yield f"{record.run_id}: {record.state}, step {record.step} of {record.total_steps}"
    yield from (f"  {problem}" for problem in record.problems)
    yield from (f"- {found}" for found in findings_of(record))
    if record.report is not None and record.report.evaluations:
        yield from _evaluations(record.report, kept="kept" if record.published is None else "published")
    validation = shown_validation(record)
    if validation is not None:
        yield from _validation(validation)


def _evaluations(card: ReportCard, *, kept: str) -> Iterator[str]:
    """``kept``: what became of the adapter of the chosen step."""
    yield ""
    yield f"loss on {len({probe.picture for probe in card.probes})} held-out pictures, at the same noise every time"
    columns = [_LANGUAGES[language] for language in card.languages] + [_sigmas(card, band) for band in range(BANDS)]
    yield _row("step", ["all", *columns])
    yield _row("base", _cells(card, card.base))
    for made in card.evaluations:
        yield _row(str(made.step), _cells(card, made.losses)) + _marks(card, made, kept)
    if card.improvement is not None and card.overfit is not None:
        yield (
            f"the adapter{_of_step(card)} lowers the base's loss by {percent(card.improvement)}; its loss is "
            f"{percent(card.overfit)} above the best"
        )
    if card.strengths:
        sweep = ", ".join(f"{one.strength:g}: {one.loss:.4f}" for one in card.strengths)
        yield f"loss at other strengths of the adapter, on a part of the pictures: {sweep}"


def _validation(made: ValidationRecord) -> Iterator[str]:
    yield ""
    yield f"pictures of the validation after step {made.step}"
    if made.change is not None:
        yield f"  change of its own prompts: {made.change:.3f}"
    if made.drift is not None:
        yield f"  change of unrelated prompts: {made.drift:.3f}"
    yield from _nearest(made.nearest)


def _nearest(nearest: Sequence[NearestRecord]) -> Iterator[str]:
    for one in nearest:
        copied = ": a copy" if one.is_copy else ""
        yield f"  {one.image}: nearest training picture {one.picture}, distance {one.distance:.3f} ({one.share:.2f}){copied}"
    if nearest:
        yield "  (in brackets: divided by the usual distance between neighbouring training pictures)"


def _marks(card: ReportCard, made: EvaluationRecord, kept: str) -> str:
    best = "  best" if card.best == made else ""
    return best + (f"  {kept}" if card.published_step == made.step else "")


def _of_step(card: ReportCard) -> str:
    return "" if card.published_step is None else f" of step {card.published_step}"


def _sigmas(card: ReportCard, band: int) -> str:
    """Return the noise levels of a band, as its probes have them."""
    sigmas = [probe.sigma for probe in card.probes if probe.band == band]
    return f"{min(sigmas):.2f}-{max(sigmas):.2f}" if sigmas else "–"


def _cells(card: ReportCard, losses: Sequence[float]) -> list[str]:
    return [f"{loss:.4f}" for loss in card.figures(tuple(losses)).values()]


def _row(first: str, cells: Sequence[str]) -> str:
    return f"  {first:>6}" + "".join(f"{cell:>11}" for cell in cells)


def _figures(card: ReportCard, losses: Sequence[float]) -> dict[str, float | None]:
    return {name: _number(loss) for name, loss in card.figures(tuple(losses)).items()}


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
