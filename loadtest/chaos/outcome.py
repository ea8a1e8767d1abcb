"""The outcome of a scenario, and the table of all outcomes."""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from loadtest.chaos.load import DROPPED, FAILED, HUNG, LOST, RIGHT, UNAVAILABLE, WRONG

_NEVER = (WRONG, LOST, FAILED, HUNG)
"""Outcomes that are failures under any fault."""
_COLUMNS = (RIGHT, UNAVAILABLE, DROPPED, *_NEVER)


@dataclass(kw_only=True)
class ScenarioOutcome:
    """The results of one scenario."""

    name: str
    counts: Counter[str] = field(default_factory=Counter)
    """Requests by outcome."""
    recoveries: list[float] = field(default_factory=list)
    """Seconds from each fault, or from its end, to a right picture."""
    faults: list[str] = field(default_factory=list)
    """Violations: events that the scenario rules out."""
    notes: dict[str, Any] = field(default_factory=dict)
    """Further measurements."""
    skipped: str = ""
    """The reason for which it was not run."""

    @property
    def holds(self) -> bool:
        """Return True if no violation occurred."""
        return not self.faults and not any(self.counts[never] for never in _NEVER) and self.has_recovered

    @property
    def has_recovered(self) -> bool:
        """Return True if a right picture came after each fault."""
        return all(math.isfinite(seconds) for seconds in self.recoveries)

    def to_json(self) -> dict[str, Any]:
        """Return the results for the report."""
        return {
            "scenario": self.name, "holds": self.holds, "skipped": self.skipped, "requests": dict(self.counts),
            "recovery_seconds": [round(seconds, 2) for seconds in self.recoveries], "faults": self.faults,
            "notes": self.notes,
        }  # fmt: skip


def table(outcomes: list[ScenarioOutcome]) -> str:
    """Return one row a scenario."""
    rows = [["scenario", "", *_COLUMNS, "recovery, s: median", "longest", "notes"]]
    for one in outcomes:
        verdict = "skipped" if one.skipped else "ok" if one.holds else "FAIL"
        seconds = sorted(one.recoveries)
        times = [f"{seconds[len(seconds) // 2]:.1f}", f"{seconds[-1]:.1f}"] if seconds else ["", ""]
        notes = one.skipped or ", ".join(f"{name} {value}" for name, value in one.notes.items())
        rows.append([one.name, verdict, *(str(one.counts[column]) for column in _COLUMNS), *times, notes])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, *(f"{one.name}: {fault}" for one in outcomes for fault in one.faults)])
