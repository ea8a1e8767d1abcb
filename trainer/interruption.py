"""Being told to stop: SIGTERM (a pod that is evicted) and Ctrl-C."""

import signal
from types import FrameType, TracebackType
from typing import Self


class InterruptedTraining(BaseException):
    """Told to stop while there was nothing to save but what is on disk already. No error: like KeyboardInterrupt."""


class Interruption:
    """Notes the first signal; the second ends the process as it would without us."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def check(self) -> None:
        """Raise ``InterruptedTraining`` if the signal has come."""
        if self.requested:
            raise InterruptedTraining

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)  # type: ignore[arg-type]
        self._before.clear()
