"""Writes ``dashboards/lithograph.json``, the Grafana dashboard of the service and its trainings.

Run it after a change of ``panels.py``: ``python deploy/grafana/dashboard.py``. A test compares the file with its output, and
another requires rows for every query on a real Prometheus after load.
"""

import json
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, statetimeline, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as kinds
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    FieldColorModeId,
    GridPos,
    Threshold,
    ThresholdsMode,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat
from panels import ROWS, Panel

FILE = Path(__file__).parent / "dashboards" / "lithograph.json"
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
SELECTORS = {"$S": 'instance=~"$instance"', "$T": 'instance=~"$trainer"'}


def _target(letter: str, legend: str, query: str) -> prometheus.Dataquery:
    for name, selector in SELECTORS.items():
        query = query.replace(name, selector)
    target = prometheus.Dataquery().ref_id(letter).expr(query).datasource(SOURCE).range()
    return target.legend_format(legend or "__auto")


def _lines(panel: Panel) -> Any:
    bars = panel.kind == "bars"
    made = (
        timeseries.Panel()
        .draw_style(kinds.GraphDrawStyle.BARS if bars else kinds.GraphDrawStyle.LINE)
        .fill_opacity(60 if bars else 20 if panel.stacked else 5)
        .legend(common.VizLegendOptions().display_mode(kinds.LegendDisplayMode.LIST).placement(kinds.LegendPlacement.BOTTOM).show_legend(True))
        .tooltip(common.VizTooltipOptions().mode(kinds.TooltipDisplayMode.MULTI).sort(kinds.SortOrder.DESCENDING))
    )  # fmt: skip
    if panel.stacked:
        made.stacking(common.StackingConfig().mode(kinds.StackingMode.NORMAL))
    if panel.logarithmic:
        made.scale_distribution(common.ScaleDistributionConfig().type(kinds.ScaleDistribution.LOG).log(10))
    elif panel.least is not None:
        made.min(panel.least)
    if panel.alarms:
        made.thresholds_style(common.GraphThresholdsStyleConfig().mode(kinds.GraphTresholdsStyleMode.LINE))
    return made


def _number(panel: Panel) -> Any:
    reduced = common.ReduceDataOptions().calcs(["lastNotNull"]).values(False)
    text = kinds.BigValueTextMode.VALUE_AND_NAME if any(panel.queries) else kinds.BigValueTextMode.VALUE
    return stat.Panel().reduce_options(reduced).text_mode(text).graph_mode(kinds.BigValueGraphMode.AREA)


def _heat(_: Panel) -> Any:
    return heatmap.Panel().color(
        heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(64)
    )


def _states(_: Panel) -> Any:
    return statetimeline.Panel().merge_values(True).show_value(kinds.VisibilityMode.AUTO)


KINDS = {"lines": _lines, "bars": _lines, "number": _number, "heat": _heat, "states": _states}
HEIGHTS = {"number": 5, "states": 5}


def _built(panel: Panel, number: int) -> Any:
    made = KINDS[panel.kind](panel).id(number).title(panel.title).description(panel.description).datasource(SOURCE)
    made.unit(panel.unit)
    if panel.most is not None:
        made.max(panel.most)
    for letter, (legend, query) in zip("ABCDEFGH", panel.queries.items(), strict=False):
        target = _target(letter, legend, query)
        made.with_target(target.format(PromQueryFormat.HEATMAP) if panel.kind == "heat" else target)
    steps = panel.alarms or {"green": None}
    thresholds = [Threshold(color=color, value=value) for color, value in steps.items()]
    made.thresholds(dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(thresholds))
    by_value = panel.kind == "number" and panel.alarms
    colour = FieldColorModeId.THRESHOLDS if by_value else FieldColorModeId.PALETTE_CLASSIC
    return made.color_scheme(dashboard.FieldColor().mode(colour))


def _variable(name: str, label: str, query: str) -> dashboard.QueryVariable:
    everything = VariableOption(selected=True, text="All", value="$__all")
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query({"query": query, "refId": "StandardVariableQuery"})
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(everything)
    )


def build() -> str:
    """Return the dashboard as JSON."""
    board = (
        dashboard.Dashboard("Lithograph")
        .uid("lithograph")
        .description("Latency and load of the service, progress of trainings. See docs/operations.md.")
        .tags(["lithograph"])
        .timezone("browser")
        .time("now-1h", "now")
        .refresh("30s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .with_variable(_variable("instance", "Service", "label_values(lithograph_ready, instance)"))
        .with_variable(_variable("trainer", "Trainer", "label_values(lithograph_trainer_step, instance)"))
    )
    number = top = 0
    for title, panels in ROWS.items():
        number += 1
        board.with_row(dashboard.Row(title).id(number).grid_pos(GridPos(h=1, w=24, x=0, y=top)))
        top += 1
        for line in _lines_of(panels):
            height, left = max(HEIGHTS.get(panel.kind, 8) for panel in line), 0
            for panel in line:
                number += 1
                place = GridPos(h=height, w=panel.width, x=left, y=top)
                board.with_panel(_built(panel, number).grid_pos(place))
                left += panel.width
            top += height
    return json.dumps(board.build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def _lines_of(panels: list[Panel]) -> list[list[Panel]]:
    """Group panels into lines of up to 24 columns."""
    lines: list[list[Panel]] = [[]]
    for panel in panels:
        if sum(other.width for other in lines[-1]) + panel.width > 24:
            lines.append([])
        lines[-1].append(panel)
    return lines


if __name__ == "__main__":
    FILE.write_text(build(), encoding="utf-8")
