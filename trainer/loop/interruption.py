"""Interruption by SIGTERM (a pod that is evicted) or Ctrl-C."""

import signal
from types import FrameType, TracebackType
from typing import Any, Self


class InterruptedTraining(BaseException):
    """A signal arrived in a stage whose results are all on disk. Not an error, like KeyboardInterrupt."""


class Interruption:
    """A context manager that records the first signal. The second one has its default effect and ends the process."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._record)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def check(self) -> None:
        """Raise ``InterruptedTraining`` if a signal has arrived."""
        if self.requested:
            raise InterruptedTraining

    def _record(self, _number: int, _frame: FrameType | None) -> None:
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()
