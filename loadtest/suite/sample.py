"""One request of a load test, and the file of them that locust's users write: a JSON object a line."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

Outcome = Literal["picture", "refused", "left", "failed"]
"""``refused``: 429, as it should be when there is too much to do. ``left``: the client went away, on purpose."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What was asked, and what came of it."""

    scenario: str
    kind: str
    """Who asked: the class of locust's user."""
    begin_seconds: float
    """Since the epoch."""
    seconds: float
    """To the last byte, or to the client's leaving."""
    outcome: Outcome
    status: int
    """0 if there was none."""
    language: str
    adapter: str | None
    size: str
    """Width x height, in px."""
    steps: int
    prompt: str
    first_event_seconds: float | None = None
    """Of a stream: to its first event."""
    picture: str | None = None
    """File name, if it was kept."""
    problem: str | None = None
    """Of a failure: what was wrong."""

    @property
    def end_seconds(self) -> float:
        """Since the epoch."""
        return self.begin_seconds + self.seconds


def write(path: Path, sample: Sample) -> None:
    """Append it."""
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(asdict(sample), ensure_ascii=False) + "\n")


def read(path: Path) -> Iterator[Sample]:
    """All of a file, in the order in which they ended."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield Sample(**json.loads(line))


def latencies(samples: Iterable[Sample], *kinds: str) -> list[float]:
    """Seconds of those that got their picture; of all kinds of users, or some."""
    return [s.seconds for s in samples if s.outcome == "picture" and (not kinds or s.kind in kinds)]
