"""When what happened to an order: marked as it happens, read when it is over, whatever it came to. No torch.

The phases of an order: it waits (``queue``) until its adapters are at hand and somebody looks at it, its prompts are encoded
(``text``), it waits for room (``queue`` again), each of its pictures is denoised, step by step, then decoded; at last the
files are written (``encode``). Times are ``time.monotonic``'s, in seconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Phase(StrEnum):
    """What an order is about at a time."""

    QUEUE = "queue"
    TEXT = "text"
    DENOISE = "denoise"
    DECODE = "decode"
    ENCODE = "encode"


@dataclass(frozen=True, kw_only=True)
class Interval:
    """One phase of an order, or of one of its pictures."""

    phase: Phase
    begin: float
    end: float
    picture: int


@dataclass(frozen=True, kw_only=True)
class StepInterval:
    """One step of one picture."""

    begin: float
    end: float
    picture: int
    step: int
    """From 1."""
    rows: int
    """Of the forward, whoever they belong to."""


class Timeline:
    """What is known of one order. Written by one thread at a time for each phase of a picture."""

    def __init__(self, *, keeps_steps: bool = False) -> None:
        self.keeps_steps = keeps_steps
        """Whether steps are wanted: a trace shows them."""
        self.intervals: list[Interval] = []
        self.steps: list[StepInterval] = []
        self._open: dict[tuple[Phase, int], float] = {}

    def begin(self, phase: Phase, at: float, picture: int = 0) -> None:
        """A phase begins."""
        self._open[phase, picture] = at

    def end(self, phase: Phase, at: float, picture: int = 0) -> None:
        """The phase that has begun ends; nothing if the timeline is closed."""
        begin = self._open.pop((phase, picture), None)
        if begin is not None:
            self.intervals.append(Interval(phase=phase, begin=begin, end=at, picture=picture))

    def close(self, at: float) -> None:
        """It is over: so is whatever was being done."""
        for phase, picture in list(self._open):
            self.end(phase, at, picture)

    def seconds(self) -> Mapping[Phase, float]:
        """Of each phase that has begun; pictures that are denoised side by side do not count twice."""
        found: dict[Phase, list[Interval]] = {}
        for interval in self.intervals:
            found.setdefault(interval.phase, []).append(interval)
        return {
            phase: max(i.end for i in group) - min(i.begin for i in group)
            if phase is Phase.DENOISE
            else sum(i.end - i.begin for i in group)
            for phase, group in found.items()
        }
