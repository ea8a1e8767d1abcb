"""What becomes of requests in the engine process, as metrics and as spans of a trace."""

from longcat.errors import DeadlineError, UserError
from service import metrics
from service.messages import Draw
from service.picture import Rendered
from service.timeline import Timeline
from service.tracing import Tracing


class Observer:
    """Told of every request that is over."""

    def __init__(self, tracing: Tracing | None) -> None:
        self._tracing = tracing

    def __call__(self, draw: Draw, timeline: Timeline, outcome: Rendered | Exception | None) -> None:
        """Called from any thread."""
        name = _outcome(outcome)
        for phase, seconds in timeline.seconds().items():
            metrics.PHASE_SECONDS.labels(phase, name).observe(seconds)
        if isinstance(outcome, Rendered):
            request = draw.request
            metrics.count_pictures(
                number=request.num_images,
                steps=request.steps,
                size=f"{request.width}x{request.height}",
                adapters=[adapter.name for adapter in outcome.adapters],
            )
        if outcome is None:
            metrics.CANCELLED.inc()
        if self._tracing is not None and draw.trace is not None:
            self._tracing.record(draw, timeline, name)


def _outcome(outcome: Rendered | Exception | None) -> str:
    match outcome:
        case Rendered():
            return "drawn"
        case None:
            return "cancelled"
        case DeadlineError():
            return "timeout"
        case UserError():
            return "refused"
        case _:
            return "failed"
