"""Finished requests of the engine process, recorded as metrics, as usage and as spans of a trace."""

from datetime import UTC, datetime

from longcat.errors import DeadlineError, UserError
from service.access.usage import UsageLedger
from service.observability import metrics
from service.observability.timeline import Phase, Timeline
from service.observability.tracing import Tracing
from service.wire.editing.fields import kind_of
from service.wire.events import ErrorEvent, ResultEvent
from service.wire.messages import DeviceUsage, GenerateCommand


class FinishedRequests:
    """Records finished, failed and cancelled requests; called once for each."""

    def __init__(self, tracing: Tracing | None, ledger: UsageLedger | None = None, *, model: str = "") -> None:
        """``ledger``: keeps the use by key, under the name of this model."""
        self._tracing = tracing
        self._ledger = ledger
        self._model = model

    def __call__(self, command: GenerateCommand, timeline: Timeline, outcome: ResultEvent | ErrorEvent | None) -> None:
        """Count a request, and record its trace. May be called from any thread, for a result before it is sent."""
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
        self._count_usage(command, timeline, outcome)
        if outcome is None:
            metrics.CANCELLED.inc()
        if self._tracing is not None and command.trace is not None:
            self._tracing.record(command, timeline, name)

    def _count_usage(
        self, command: GenerateCommand, timeline: Timeline, outcome: ResultEvent | ErrorEvent | None
    ) -> None:
        seconds = timeline.seconds()
        usage = DeviceUsage(
            requests=1,
            pictures=len(outcome.images) if isinstance(outcome, ResultEvent) else 0,
            pixel_steps=timeline.pixel_steps,
            device_seconds=timeline.step_seconds + seconds.get(Phase.TEXT, 0.0) + seconds.get(Phase.DECODE, 0.0),
        )
        metrics.count_usage(command.key, usage)
        if self._ledger is not None:
            written = self._ledger.add(usage, key=command.key, day=datetime.now(UTC).date(), model=self._model)
            if isinstance(outcome, ResultEvent):  # in a worker thread; the others may end in the step loop
                written.result()


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
