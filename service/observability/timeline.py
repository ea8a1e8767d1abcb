"""The timeline of a request: start and end of each phase, complete however the request ends. No torch.

Phases: ``queue`` until its adapters are fetched and a worker is free, ``text`` while its prompts are encoded, ``queue``
until rows and slots are free, then for each image ``denoise``, ``decode`` and ``encode`` (its file is written). Times are
``time.monotonic``'s, in seconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Phase(StrEnum):
    """A phase of a request."""

    QUEUE = "queue"
    TEXT = "text"
    DENOISE = "denoise"
    DECODE = "decode"
    ENCODE = "encode"


@dataclass(frozen=True, kw_only=True)
class Interval:
    """One phase of a request, or of one of its images."""

    phase: Phase
    begin: float
    end: float
    picture: int


@dataclass(frozen=True, kw_only=True)
class StepInterval:
    """One denoising step of one image."""

    begin: float
    end: float
    picture: int
    step: int
    """Number of the step, from 1."""
    rows: int
    """Rows of the whole forward, of all requests that shared it."""


class Timeline:
    """The phases and steps of one request. Each phase of an image is written by one thread at a time."""

    def __init__(self, *, keeps_steps: bool = False) -> None:
        self.keeps_steps = keeps_steps
        """True for a traced request: a trace shows every step."""
        self.intervals: list[Interval] = []
        self.steps: list[StepInterval] = []
        self.pixel_steps = 0
        """Pixels times rows of all steps made."""
        self.step_seconds = 0.0
        """Its part of the steps' time, by rows."""
        self._open: dict[tuple[Phase, int], float] = {}

    def add_step(self, *, pixel_steps: int, seconds: float) -> None:
        """Account for a step of one of its images. Called in the step loop."""
        self.pixel_steps += pixel_steps
        self.step_seconds += seconds

    def begin(self, phase: Phase, at: float, picture: int = 0) -> None:
        """Begin a phase."""
        self._open[phase, picture] = at

    def end(self, phase: Phase, at: float, picture: int = 0) -> None:
        """End a phase; do nothing if it has ended, or the timeline is closed."""
        begin = self._open.pop((phase, picture), None)
        if begin is not None:
            self.intervals.append(Interval(phase=phase, begin=begin, end=at, picture=picture))

    def close(self, at: float) -> None:
        """End all open phases."""
        for phase, picture in list(self._open):
            self.end(phase, at, picture)

    def seconds(self) -> Mapping[Phase, float]:
        """Return the seconds of each phase; ``denoise`` is the span of all images, because images overlap in it."""
        found: dict[Phase, list[Interval]] = {}
        for interval in self.intervals:
            found.setdefault(interval.phase, []).append(interval)
        return {
            phase: max(i.end for i in group) - min(i.begin for i in group)
            if phase is Phase.DENOISE
            else sum(i.end - i.begin for i in group)
            for phase, group in found.items()
        }
