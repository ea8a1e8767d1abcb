"""Seconds and memory of a computation on a device."""

import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.gpu_check.checks import Figure
from longcat.model.memory.in_use import memory_of

GIB = 2**30


def seconds_of(run: Callable[[], object], device: torch.device, *, rounds: int = 5) -> float:
    """Return the median seconds of a call, the device's work included, after one that is not counted."""
    run()
    seconds = []
    for _ in range(rounds):
        synchronize(device)
        begin = time.perf_counter()
        run()
        synchronize(device)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def synchronize(device: torch.device) -> None:
    """Wait for the device's work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class PeakMemory:
    """The device memory that a computation takes."""

    def __init__(self, device: torch.device) -> None:
        """Count from here."""
        self._device = device
        self.before_bytes = memory_of(device)["used"]
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    @property
    def peak_bytes(self) -> int | None:
        """The most in use since then, with what was in use before; None on a CPU, which does not report it."""
        return memory_of(self._device).get("peak")

    def figures(self) -> dict[str, Figure]:
        """Return the peak for a record, in GiB, and what of it came since then; nothing on a CPU."""
        peak = self.peak_bytes
        return {} if peak is None else {"peak_gib": peak / GIB, "added_gib": (peak - self.before_bytes) / GIB}


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the norm of the difference over that of what is expected."""
    difference = (actual.float() - expected.float()).norm() / expected.float().norm()
    return float(difference)
