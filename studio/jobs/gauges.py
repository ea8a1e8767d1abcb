"""Gauges of this machine while a training runs on it: GPU and its memory, or CPU and main memory. No torch."""

import subprocess
import time
from dataclasses import dataclass
from typing import Literal

import psutil

_MIB = 2**20
_KEPT_SECONDS = 1.5
_CPU_SECONDS = 0.2
"""Time in which the load of the CPU is measured."""
_QUERY = ("nvidia-smi", "--query-gpu=utilization.gpu,memory.used,memory.total", "--format=csv,noheader,nounits")
_QUERY_SECONDS = 5


@dataclass(frozen=True, kw_only=True)
class Gauges:
    """The load of the machine, of all that runs on it."""

    kind: Literal["gpu", "cpu"]
    busy: float
    """Share of time in which it computes, 0 to 1: of the first GPU, or of all CPU cores."""
    used_bytes: int
    total_bytes: int


class GaugeReader:
    """A reader that keeps its last reading for a moment, because every open page asks."""

    def __init__(self) -> None:
        self._has_gpu = True
        self._last: tuple[float, Gauges] | None = None

    def read(self) -> Gauges:
        """Return the gauges of now; takes ``_CPU_SECONDS``."""
        now = time.monotonic()
        if self._last is None or now - self._last[0] > _KEPT_SECONDS:
            self._last = now, self._gpu() or _cpu()
        return self._last[1]

    def _gpu(self) -> Gauges | None:
        """Ask the driver's own program; after it is missing or fails once, there is no GPU."""
        if not self._has_gpu:
            return None
        try:
            done = subprocess.run(_QUERY, capture_output=True, text=True, check=True, timeout=_QUERY_SECONDS)
            return parse_gpu(done.stdout)
        except (OSError, subprocess.SubprocessError, ValueError):
            self._has_gpu = False
            return None


def parse_gpu(output: str) -> Gauges:
    """Return the first GPU of what ``nvidia-smi`` printed. Raises ``ValueError`` if it reports no numbers."""
    busy, used, total = (float(part) for part in output.partition("\n")[0].split(","))
    return Gauges(kind="gpu", busy=busy / 100, used_bytes=round(used * _MIB), total_bytes=round(total * _MIB))


def _cpu() -> Gauges:
    memory = psutil.virtual_memory()
    return Gauges(
        kind="cpu",
        # Without a time it is measured from the last call in the same thread: 0 in a new one.
        busy=psutil.cpu_percent(_CPU_SECONDS) / 100,
        used_bytes=memory.total - memory.available,
        total_bytes=memory.total,
    )
