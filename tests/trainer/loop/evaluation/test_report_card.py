"""The report card: losses by language and noise level, the best step, and findings."""

import math

import pytest

from longcat.errors import PublicationGatedError
from trainer.loop.evaluation.evaluations import interval_of
from trainer.record.report_card import BANDS, EvaluationRecord, NearestRecord, ProbeRecord, ReportCard, findings
from trainer.validation.gate import GateSettings, gate, gated

PROBES = tuple(
    ProbeRecord(picture=f"set/{i}.png", language=language, sigma=0.1, band=band)
    for i, language in enumerate(("zh", "en"))
    for band in range(BANDS)
)


def card(*losses: float, base: float = 1.0, **given: object) -> ReportCard:
    """Return a card of evaluations in which every probe has the same loss."""
    made = tuple(EvaluationRecord(step=10 * (i + 1), losses=(loss,) * len(PROBES)) for i, loss in enumerate(losses))
    return ReportCard(probes=PROBES, base=(base,) * len(PROBES), evaluations=made, **given)


def nearest(*copies: bool) -> list[NearestRecord]:
    return [
        NearestRecord(image="x", picture="set/0.png", distance=0.1, share=0.2, is_copy=is_copy) for is_copy in copies
    ]


def codes(made: ReportCard | None, *copies: bool) -> list[str]:
    return [problem.code for problem in findings(made, nearest(*copies))]


def test_languages_and_bands_count_alike_however_many_probes_they_have() -> None:
    probes = (*PROBES, *(PROBES[0].model_copy() for _ in range(5)))  # six Chinese ones in the lowest band
    made = ReportCard(probes=probes)
    losses = (1.0, 2.0, 2.0, 3.0, *(4.0,) * 4, *(1.0,) * 5)
    assert made.languages == ["zh", "en"]
    assert made.loss(losses, language="zh") == 2.0
    assert made.loss(losses, language="en") == 4.0
    assert made.loss(losses) == 3.0
    assert made.loss(losses, band=0) == 2.5
    assert made.figures(losses)["loss_sigma_4"] == 3.5
    assert math.isnan(made.loss(losses, language="other"))


def test_the_best_is_the_first_of_the_lowest_and_never_one_that_is_no_number() -> None:
    best = card(0.9, math.nan, 0.7, 0.7, 0.8).best
    assert best is not None
    assert best.step == 30
    assert card().best is None


def test_a_training_stops_when_patience_is_over() -> None:
    losses = (0.9, 0.8, 0.85, 0.81)
    assert [card(*losses[:count], patience=2).is_stopped for count in range(1, 5)] == [False, False, False, True]
    assert not card(*losses).is_stopped
    assert card(*losses).until(30, 1).is_stopped


def test_findings_explain_the_figures() -> None:
    assert codes(card(0.9, 0.7, 0.8)) == ["report_overfit"]
    assert codes(card(0.9, 0.7, 0.705)) == ["report_converged"]
    assert codes(card(0.9, 0.8, 0.7), True, False) == ["report_still_improving", "report_copies"]
    assert codes(card(1.2, 1.1)) == ["report_no_improvement"]
    assert codes(card(0.9, math.nan)) == ["report_overfit"]
    assert codes(None) == codes(ReportCard()) == ["report_nothing_held_out"]
    assert codes(card()) == [], "pictures are held out, and the first evaluation is still to come"


@pytest.mark.parametrize(
    ("settings", "failed"),
    [
        ({}, []),
        ({"publish_min_improvement": 0.2, "publish_max_overfit": 0.2, "publish_max_copies": 1}, []),
        ({"publish_min_improvement": 0.3}, ["gate_improvement"]),
        ({"publish_max_overfit": 0.05, "publish_max_copies": 0}, ["gate_overfit", "gate_copies"]),
    ],
)
def test_thresholds_gate_the_published_adapter(settings: dict[str, float], failed: list[str]) -> None:
    thresholds = dict.fromkeys(("publish_min_improvement", "publish_max_overfit", "publish_max_copies")) | settings
    made = card(0.9, 0.7, 0.77, published_step=30)
    problems = gate(GateSettings(**thresholds), made, nearest(True, False))
    assert [problem.code for problem in problems] == failed
    if problems:
        error = gated(problems)
        assert isinstance(error, PublicationGatedError)
        assert [problem.code for problem in error.problems] == ["publication_gated", *failed]


def test_the_published_step_decides_not_the_last() -> None:
    made = card(0.9, 0.7, 0.77, published_step=20)
    assert made.overfit == 0
    assert made.improvement == pytest.approx(0.3)
    settings = GateSettings(publish_min_improvement=None, publish_max_overfit=0.0, publish_max_copies=None)
    assert not gate(settings, made, ())
    assert gate(settings, card(0.9, 0.7, math.nan, published_step=30), ()), "a loss that is no number passes nothing"


@pytest.mark.parametrize(("steps", "pictures", "probes"), [(1000, 1, 16), (1000, 4, 32), (300, 2, 16), (5000, 8, 64)])
def test_evaluations_keep_within_their_budget(steps: int, pictures: int, probes: int) -> None:
    interval = interval_of(steps, pictures=pictures, probes=probes)
    evaluations = 1 + steps // interval + (steps % interval > 0)
    assert evaluations <= 21
    if evaluations > 2:  # the base and the last step are evaluated in any case
        assert (evaluations * probes + 5 * 8) * 0.5 <= 0.045 * steps * pictures
