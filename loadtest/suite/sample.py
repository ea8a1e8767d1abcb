"""The record of one request, and the file in which locust's users write them: a JSON object a line."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

ScenarioOutcome = Literal["picture", "refused", "left", "failed"]
"""``refused``: 429, as intended under overload. ``left``: the client disconnected on purpose."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A request and its outcome."""

    scenario: str
    kind: str
    """Class of the locust user that sent it."""
    begin_seconds: float
    """Time of sending, in seconds since the epoch."""
    seconds: float
    """Time to the last byte, or to the client's disconnection."""
    outcome: ScenarioOutcome
    status: int
    """HTTP status; 0 if there was none."""
    language: str
    adapter: str | None
    size: str
    """Width x height, in px."""
    steps: int
    prompt: str
    first_event_seconds: float | None = None
    """Time to the first event of a stream."""
    picture: str | None = None
    """File name, if it was kept."""
    problem: str | None = None
    """Reason of a failure."""

    @property
    def end_seconds(self) -> float:
        """Return the time of the end, in seconds since the epoch."""
        return self.begin_seconds + self.seconds


def write(path: Path, sample: Measurement) -> None:
    """Append a measurement to a file."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(asdict(sample), ensure_ascii=False) + "\n")


def read(path: Path) -> Iterator[Measurement]:
    """Yield the measurements of a file, in the order of their end."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield Measurement(**json.loads(line))


def latencies(samples: Iterable[Measurement], *kinds: str) -> list[float]:
    """Return the seconds of successful requests, of all kinds of users or of some."""
    return [s.seconds for s in samples if s.outcome == "picture" and (not kinds or s.kind in kinds)]
