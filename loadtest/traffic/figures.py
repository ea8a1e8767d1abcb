"""Statistics of measurements: percentiles, ratios, tables, and a description of the machine."""

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

Figures = dict[str, float]

_LIBRARIES = ("torch", "diffusers", "transformers", "peft", "litserve")


def percentile(values: Sequence[float], percent: float) -> float:
    """Return a percentile by linear interpolation; NaN without values."""
    return float(np.percentile(values, percent)) if values else float("nan")


def median(values: Sequence[float]) -> float:
    """Return the median; NaN without values."""
    return percentile(values, 50)


def medians(rounds: Sequence[Figures]) -> Figures:
    """Return the median over rounds of every figure."""
    return {name: median([figures[name] for figures in rounds]) for name in rounds[0]}


def ratios(ours: Sequence[Figures], theirs: Sequence[Figures]) -> list[Figures]:
    """Return the ratio of every figure in every round; rounds are interleaved, so that both had the same machine."""
    return [
        {name: value / other[name] for name, value in figures.items()}
        for figures, other in zip(ours, theirs, strict=True)
    ]


def machine() -> dict[str, Any]:
    """Describe the machine and the versions."""
    return {
        "cores": os.cpu_count(),
        "architecture": platform.machine(),
        "system": platform.system(),
        "load_average_at_start": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **{library: version(library) for library in _LIBRARIES},
    }


def table(rows: Mapping[str, Figures]) -> str:
    """Return a table with a row for each name and a column for each figure, to four significant digits."""
    columns = list(next(iter(rows.values())))
    cells = [["", *columns], *([name, *(f"{figures[c]:.4g}" for c in columns)] for name, figures in rows.items())]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)


def report(content: Mapping[str, Any], tables: Sequence[str]) -> None:
    """Print tables on stderr, and everything as JSON on stdout."""
    print("\n\n".join(tables), file=sys.stderr)
    print(json.dumps(_rounded(content), indent=1, ensure_ascii=False))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    return value
