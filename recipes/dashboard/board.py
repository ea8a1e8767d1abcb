"""The dashboard's panels and their queries, with variables filled in as by Grafana."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent.parent.parent / "deploy" / "grafana" / "dashboards" / "lithograph.json"
_ALL = {"instance": ".*", "trainer": ".*"}


@dataclass(frozen=True, kw_only=True)
class Query:
    """One query of a panel."""

    legend: str
    expression: str

    def name(self, labels: Mapping[str, str]) -> str:
        """Return the legend of a series."""
        if self.legend == "__auto":
            return ", ".join(labels.values())
        return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), self.legend).strip(" ,")


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One panel and its position."""

    title: str
    kind: str
    """Grafana's panel type."""
    unit: str
    left: int
    top: int
    width: int
    height: int
    is_stacked: bool
    is_logarithmic: bool
    is_bars: bool
    thresholds: tuple[tuple[float, str], ...]
    queries: tuple[Query, ...]


def rows(rate_seconds: float) -> dict[str, list[Panel]]:
    """Return the panels by row, with every variable filled in: all instances, and ``$__rate_interval``."""
    found: dict[str, list[Panel]] = {}
    for panel in json.loads(FILE.read_text(encoding="utf-8"))["panels"]:
        if panel["type"] == "row":
            found[panel["title"]] = []
        else:
            list(found.values())[-1].append(_panel(panel, rate_seconds))
    return found


def _panel(panel: Mapping[str, Any], rate_seconds: float) -> Panel:
    place, defaults = panel["gridPos"], panel["fieldConfig"]["defaults"]
    custom = defaults.get("custom", {})
    values = _ALL | {"__rate_interval": f"{rate_seconds:g}s"}
    return Panel(
        title=panel["title"], kind=panel["type"], unit=defaults["unit"],
        left=place["x"], top=place["y"], width=place["w"], height=place["h"],
        is_stacked=custom.get("stacking", {}).get("mode") == "normal",
        is_logarithmic=custom.get("scaleDistribution", {}).get("type") == "log",
        is_bars=custom.get("drawStyle") == "bars",
        thresholds=tuple(
            (float("-inf") if step["value"] is None else step["value"], step["color"])
            for step in defaults["thresholds"]["steps"]
        ),
        queries=tuple(
            Query(
                legend=target["legendFormat"],
                expression=re.sub(r"\$(\w+)", lambda match: values[match[1]], target["expr"]),
            )
            for target in panel["targets"]
        ),
    )  # fmt: skip
