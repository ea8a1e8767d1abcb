"""The report of a run: a table in Markdown, and JSON. No torch."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.gpu_check.checks import Record, Status, shown
from benchmarks.gpu_check.settings import Settings

_WORDS = {
    "ms": "ms", "s": "s", "gib": "GiB", "gib_per_s": "GiB/s", "tflop_per_s": "TFLOP/s", "mib": "MiB",
}  # fmt: skip
"""Units as people write them, by the ends of figures' names."""


def table(records: Iterable[Record]) -> str:
    """Return the records as a table in Markdown."""
    lines = ["| part | group | check | result | s | measured |", "| --- | --- | --- | --- | --- | --- |"]
    for record in records:
        figures = ", ".join(_figure(name, value) for name, value in record.figures.items())
        ends = "; ".join(filter(None, (figures, record.reason))).replace("|", "\\|").replace("\n", " ")
        cells = (record.part, record.group, record.name, record.status.value, f"{record.seconds:.1f}", ends)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def summary(records: Iterable[Record]) -> str:
    """Return the numbers of checks by their ends."""
    counts = Counter(record.status for record in records)
    return ", ".join(f"{counts[status]} {status.value}" for status in Status)


def write(records: Sequence[Record], settings: Settings, *, seconds: float, folder: Path) -> tuple[Path, Path]:
    """Write report.json and report.md; return their paths."""
    content = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": round(seconds, 1), "device": settings.device,
        "size": settings.size, "weights": settings.model or "random", "summary": summary(records),
        "checks": [asdict(record) for record in records],
    }  # fmt: skip
    as_json, as_table = folder / "report.json", folder / "report.md"
    as_json.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    as_table.write_text(table(records) + "\n", encoding="utf-8")
    return as_json, as_table


def _figure(name: str, value: float | int | str) -> str:
    for end in sorted(_WORDS, key=len, reverse=True):
        if name == end or name.endswith(f"_{end}"):
            subject = name.removesuffix(end).strip("_").replace("_", " ")
            return f"{subject} {shown(value)} {_WORDS[end]}".strip()
    return f"{name.replace('_', ' ')} {shown(value)}"
