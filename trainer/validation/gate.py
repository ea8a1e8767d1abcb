"""The configured thresholds of publication: an adapter that fails one is kept but not published."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from longcat.errors import PublicationGatedError
from longcat.problem import Problem
from trainer.record.report_card import NearestRecord, ReportCard, percent


@dataclass(frozen=True, kw_only=True)
class GateSettings:
    """The thresholds, under their names in ``TrainConfig``; None is no threshold."""

    publish_min_improvement: float | None
    publish_max_overfit: float | None
    publish_max_copies: int | None


def gate(settings: GateSettings, card: ReportCard, nearest: Sequence[NearestRecord]) -> tuple[Problem, ...]:
    """Return the problem of each threshold that the adapter fails. NaN fails."""
    return tuple(_failed(settings, card, nearest))


def gated(problems: Sequence[Problem]) -> PublicationGatedError:
    """Return the error of an adapter that fails thresholds. Processes other than rank 0 may not know which."""
    kept = Problem(
        code="publication_gated",
        template="the adapter is not published, because it does not meet the thresholds of the configuration",
        remedy_template="change them or the training; the adapter is in output_dir, as adapter.safetensors",
    )
    return PublicationGatedError.of((kept, *problems))


def _failed(settings: GateSettings, card: ReportCard, nearest: Sequence[NearestRecord]) -> Iterator[Problem]:
    least, most = settings.publish_min_improvement, settings.publish_max_overfit
    if least is not None and card.improvement is not None and not card.improvement >= least:
        yield Problem(
            code="gate_improvement",
            template="the adapter lowers the base's loss on held-out pictures by {share}",
            remedy_template="lower it, or train with a smaller learning_rate or on more pictures",
            field="publish_min_improvement",
            value=least,
            details={"share": percent(card.improvement)},
        )
    if most is not None and card.overfit is not None and not card.overfit <= most:
        yield Problem(
            code="gate_overfit",
            template="the adapter's loss on held-out pictures is {share} above that of the best evaluation",
            remedy_template="raise it, or set publish_checkpoint best",
            field="publish_max_overfit",
            value=most,
            details={"share": percent(card.overfit)},
        )
    copies = [one.picture for one in nearest if one.is_copy]
    if settings.publish_max_copies is not None and len(copies) > settings.publish_max_copies:
        yield Problem(
            code="gate_copies",
            template="{count} validation pictures are copies of training pictures: {names}",
            remedy_template="raise it, or train for fewer steps or on more pictures",
            field="publish_max_copies",
            value=settings.publish_max_copies,
            details={"count": len(copies), "names": ", ".join(copies[:3])},
        )
