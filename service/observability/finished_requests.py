"""Finished requests of the engine process, recorded as metrics and as spans of a trace."""

from longcat.errors import DeadlineError, UserError
from service.engine.timeline import Timeline
from service.observability import metrics
from service.observability.tracing import Tracing
from service.wire.editing.fields import kind_of
from service.wire.events import ErrorEvent, ResultEvent
from service.wire.messages import GenerateCommand


class FinishedRequests:
    """Records finished, failed and cancelled requests; called once for each."""

    def __init__(self, tracing: Tracing | None) -> None:
        self._tracing = tracing

    def __call__(self, command: GenerateCommand, timeline: Timeline, outcome: ResultEvent | ErrorEvent | None) -> None:
        """Count a request, and record its trace. May be called from any thread."""
        name = _outcome(outcome)
        for phase, seconds in timeline.seconds().items():
            metrics.PHASE_SECONDS.labels(phase, name).observe(seconds)
        if isinstance(outcome, ResultEvent):
            request = outcome.request
            metrics.count_pictures(
                number=request.num_images,
                steps=request.denoising_steps,
                kind=kind_of(request.edit),
                size=f"{request.width}x{request.height}",
                adapters=[adapter.name for adapter in outcome.adapters],
            )
        if outcome is None:
            metrics.CANCELLED.inc()
        if self._tracing is not None and command.trace is not None:
            self._tracing.record(command, timeline, name)


def _outcome(outcome: ResultEvent | ErrorEvent | None) -> str:
    match outcome:
        case ResultEvent():
            return "drawn"
        case None:
            return "cancelled"
        case ErrorEvent(DeadlineError()):
            return "timeout"
        case ErrorEvent(UserError()):
            return "refused"
        case _:
            return "failed"
