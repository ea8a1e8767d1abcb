"""Latency of ``/healthz`` and memory of the service under fuzzing."""

import threading
import time
from types import TracebackType
from typing import Any, Self

import httpx
import psutil

from tests.conftest import RunningServer

_EVERY_SECONDS = 2.0
_LATE_SECONDS = 1.0
_TENTH = 10


class Vitals:
    """A measurement for the duration of its context."""

    def __init__(self, server: RunningServer) -> None:
        self._server = server
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._delays: list[float] = []
        self._bytes: list[dict[str, int]] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def summary(self) -> dict[str, Any]:
        """Return the delays of ``/healthz``, and the memory of each process after the first tenth and at the end."""
        first, last = self._bytes[len(self._bytes) // _TENTH], self._bytes[-1]
        return {
            "asked": len(self._delays), "late": sum(delay > _LATE_SECONDS for delay in self._delays),
            "slowest_seconds": round(max(self._delays), 2), "mib_first": {k: v >> 20 for k, v in first.items()},
            "mib_last": {k: v >> 20 for k, v in last.items()},
        }  # fmt: skip

    def is_well(self, *, most_growth: float) -> bool:
        """Return True if no process died and none grew by more than this factor."""
        first, last = self._bytes[len(self._bytes) // _TENTH], self._bytes[-1]
        return first.keys() == last.keys() and all(last[name] <= first[name] * most_growth for name in first)

    def _watch(self) -> None:
        with httpx.Client(timeout=60) as client:
            while not self._over.wait(_EVERY_SECONDS):
                begun = time.monotonic()
                try:
                    client.get(f"{self._server.url}/healthz").raise_for_status()
                    self._delays.append(time.monotonic() - begun)
                except httpx.HTTPError:
                    self._delays.append(float("inf"))
                self._bytes.append(self._memory())

    def _memory(self) -> dict[str, int]:
        """Return resident bytes by process id."""
        main = psutil.Process(self._server.process.pid)
        return {str(process.pid): process.memory_info().rss for process in (main, *main.children(recursive=True))}
