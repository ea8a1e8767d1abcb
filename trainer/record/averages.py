"""The metrics of a run: those of the last step, and moving averages over about 50 steps. No torch."""

from dataclasses import dataclass

_AVERAGED_STEPS = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """One optimizer step."""

    step: int
    """Counted from 1."""
    loss: float
    learning_rate: float
    gradient_norm: float
    """Before clipping."""
    step_seconds: float
    images: int
    """Pictures of the step, over all processes."""


class Averages:
    """The metrics computed from the reported steps; there are none before the first step."""

    def __init__(self, *, total_steps: int) -> None:
        self.last: StepReport | None = None
        self._total_steps = total_steps
        self._loss, self._seconds, self._images = _MovingAverage(), _MovingAverage(), _MovingAverage()

    def add(self, report: StepReport) -> None:
        """Include a step."""
        self.last = report
        self._loss.add(report.loss)
        self._seconds.add(report.step_seconds)
        self._images.add(report.images)

    def values(self) -> dict[str, float]:
        """Return the metrics by their names in ``run.json``."""
        if self.last is None:
            return {}
        return {
            "step": self.last.step,
            "loss": self.last.loss,
            "smoothed_loss": self._loss.value,
            "learning_rate": self.last.learning_rate,
            "gradient_norm": self.last.gradient_norm,
            "step_seconds": self._seconds.value,
            "images_per_second": self._images.value / self._seconds.value,
            "eta_seconds": self._seconds.value * (self._total_steps - self.last.step),
        }


class _MovingAverage:
    """An exponential moving average without bias towards zero: the sum is divided by the sum of weights."""

    def __init__(self) -> None:
        self._sum = self._weight = 0.0

    def add(self, value: float) -> None:
        share = 2 / (_AVERAGED_STEPS + 1)
        self._sum += (value - self._sum) * share
        self._weight += (1 - self._weight) * share

    @property
    def value(self) -> float:
        return self._sum / self._weight
