"""GroupChecks: functions that measure and require, and the records of how they ended. No torch.

A check that raises has failed, and the next one runs. A check that cannot run here is skipped, with its reason.
"""

import json
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

Figure = float | int | str
OURS = ("benchmarks", "lithograph", "loadtest", "longcat", "service", "studio", "trainer")
"""Packages that can never be missing: without another one, a check is skipped."""


class Status(StrEnum):
    """The end of a check."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


class Skipped(Exception):  # noqa: N818 - not an error
    """The reason why a check cannot run here."""


class Failed(Exception):  # noqa: N818 - the name of the status
    """The reason why a check has failed."""


@dataclass(kw_only=True)
class Record:
    """A check and how it ended."""

    part: int
    group: str
    name: str
    status: Status = Status.PASSED
    seconds: float = 0.0
    reason: str = ""
    figures: dict[str, Figure] = field(default_factory=dict)
    """Measured values; their names end in a unit."""

    @property
    def line(self) -> str:
        """The record as a line of text."""
        figures = ", ".join(f"{name} {shown(value)}" for name, value in self.figures.items())
        ends = "; ".join(filter(None, (figures, self.reason)))
        return f"{self.status.value:8}{self.group}: {self.name}  ({self.seconds:.1f} s)  {ends}".rstrip()


class Check:
    """The interface that a check's function measures with."""

    def __init__(self, record: Record) -> None:
        """Write figures into ``record``."""
        self._record = record

    def note(self, **figures: Figure) -> None:
        """Record figures, also of a check that fails later."""
        self._record.figures |= {name: _rounded(value) for name, value in figures.items()}

    @staticmethod
    def require(condition: bool, reason: str) -> None:
        """Raise ``Failed`` with the reason unless the condition holds."""
        if not condition:
            raise Failed(reason)


class GroupChecks:
    """The checks of a group in its own process. Each is printed and appended to a file as soon as it ends."""

    def __init__(self, part: int, group: str, records: Path, *, only: str = "") -> None:
        """``only``: run the checks whose name, with the group's before it, contains this."""
        self._part, self._group, self._file, self._only = part, group, records, only
        self._ended_by = ""
        self.after: Callable[[BaseException | None], str] = lambda _: ""
        """Called after each check with its exception; returns why no later one can run in this process, or nothing."""

    def run(self, name: str, function: Callable[[Check], object]) -> None:
        """Run a check and record how it ended."""
        if self._only not in f"{self._group}: {name}":
            return
        record = Record(part=self._part, group=self._group, name=name)
        if self._ended_by:
            record.status, record.reason = Status.SKIPPED, self._ended_by
        else:
            self._append({"began": name, "at": time.time()})
            self._ended_by = self._measure(record, function)
        self._append(asdict(record))
        print(record.line, flush=True)

    def group(self, function: Callable[[], object]) -> None:
        """Run the checks of a group, and record an exception outside them as the end of the group."""
        try:
            function()
        except Exception as error:  # any: it is recorded as what it is
            traceback.print_exc()
            status, reason = _outcome(error)
            record = Record(part=self._part, group=self._group, name="all", status=status, reason=reason)
            self._append(asdict(record))
            print(record.line, flush=True)

    def _measure(self, record: Record, function: Callable[[Check], object]) -> str:
        begin, raised = time.monotonic(), None
        try:
            function(Check(record))
        except Exception as error:  # any: that a check fails must not end the others
            record.status, record.reason = _outcome(error)
            if record.status is Status.FAILED and not isinstance(error, Failed):
                traceback.print_exc()
            raised = error
        record.seconds = round(time.monotonic() - begin, 2)
        return self.after(raised)

    def _append(self, entry: dict[str, Any]) -> None:
        with self._file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry, ensure_ascii=False) + "\n")


def _outcome(error: Exception) -> tuple[Status, str]:
    if isinstance(error, Skipped | Failed):
        return (Status.SKIPPED if isinstance(error, Skipped) else Status.FAILED), str(error)
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] not in OURS:
        return Status.SKIPPED, f"the package {error.name} is not installed"
    where = next(
        (f for f in reversed(traceback.extract_tb(error.__traceback__)) if "site-packages" not in f.filename), None
    )
    place = f" at {Path(where.filename).name}:{where.lineno}" if where else ""
    first, *_ = str(error).strip().splitlines() or [""]
    return Status.FAILED, f"{type(error).__name__}{place}: {first[:300]}"


def _rounded(value: Figure) -> Figure:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def shown(value: Figure) -> str:
    """Return a figure as text."""
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
