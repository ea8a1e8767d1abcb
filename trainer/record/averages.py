"""The metrics of a run: those of the last step, moving averages over about 50 steps, losses for the manifest. No torch."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

_AVERAGED_STEPS = 50
_RECORDED_LOSSES = 100
"""Mean losses in an adapter's manifest: enough for a curve, few enough to read."""


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
        """Add a step to the averages."""
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


class LossHistory:
    """The mean losses over each hundredth of a run."""

    def __init__(self, *, total_steps: int) -> None:
        self.recent: list[float] = []
        """Losses of the hundredth under way, oldest first."""
        self._means: deque[float] = deque(maxlen=_RECORDED_LOSSES)
        self._steps = max(1, total_steps // _RECORDED_LOSSES)

    @property
    def means(self) -> tuple[float, ...]:
        """The means, oldest first."""
        return tuple(self._means)

    def resume(self, means: Sequence[float], recent: list[float]) -> None:
        """Continue after a checkpoint's losses."""
        self._means.extend(means)
        self.recent = recent

    def add(self, loss: float) -> None:
        """Include a step's loss."""
        self.recent.append(loss)
        if len(self.recent) >= self._steps:
            self._means.append(sum(self.recent) / len(self.recent))
            self.recent.clear()
