"""Pictures of the dashboard's rows from Prometheus replies. The queries are the dashboard's, the rendering is our own."""

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.dates import date2num
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from PIL import Image

from recipes.dashboard.board import Panel, Query
from recipes.dashboard.prometheus import Series

Ask = Callable[[str], list[Series]]
Answer = list[tuple[Query, Series]]
Span = tuple[float, float]
"""Begin and end of a period, in seconds since 1970."""

_INCHES_A_COLUMN, _INCHES_A_LINE, _DPI = 0.56, 0.29, 100
_TICK_SECONDS = (5, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400)
_INK, _FAINT, _GROUND, _CARD = "#24292f", "#8a939c", "#f4f5f7", "#ffffff"
_COLOURS = ("#3d71d9", "#e0752d", "#37872d", "#c4162a", "#8f3bb8", "#b8860b", "#0b8a8f", "#6e7781")
_NAMED = {"green": "#37872d", "orange": "#e0752d", "red": "#c4162a"}
_STYLE: dict[Any, Any] = {
    "font.size": 8, "text.color": _INK, "axes.edgecolor": "#d0d7de", "axes.facecolor": _CARD, "axes.labelcolor": _INK,
    "xtick.color": _FAINT, "ytick.color": _FAINT, "axes.spines.top": False, "axes.spines.right": False,
    "grid.color": "#e6e9ed", "axes.prop_cycle": cycler(color=_COLOURS), "legend.frameon": False,
}  # fmt: skip


def draw(rows: Mapping[str, Sequence[Panel]], ask: Ask, span: Span, file: Path) -> None:
    """Draw the rows, one below the other, as a PNG with few colours; ``span``: the period of all panels."""
    with mpl.rc_context(_STYLE):
        lines = sum(1 + _height(panels) for panels in rows.values())
        figure = Figure(figsize=(24 * _INCHES_A_COLUMN, lines * _INCHES_A_LINE), facecolor=_GROUND)
        top = 0
        for title, panels in rows.items():
            figure.text(0.008, 1 - (top + 0.72) / lines, title, fontsize=10, weight="bold")
            first = min(panel.top for panel in panels)
            for panel in panels:
                _panel(figure, panel, ask, span, line=top + 1 + panel.top - first, lines=lines)
            top += 1 + _height(panels)
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=_DPI)
    Image.open(content).convert("RGB").quantize(96).save(file, optimize=True)


def _height(panels: Sequence[Panel]) -> int:
    return max(panel.top + panel.height for panel in panels) - min(panel.top for panel in panels)


def _panel(figure: Figure, panel: Panel, ask: Ask, span: Span, *, line: int, lines: int) -> None:
    gap = 0.003
    left, bottom = panel.left / 24 + gap, 1 - (line + panel.height) / lines + gap
    width, height = panel.width / 24 - 2 * gap, panel.height / lines - 2 * gap
    card = figure.add_axes((left, bottom, width, height))
    card.set(xticks=[], yticks=[])
    for spine in card.spines.values():
        spine.set(visible=True, color="#e1e4e8")
    figure.text(left + 0.006, bottom + height - 0.55 / lines, panel.title, fontsize=8.5, weight="bold", va="center")
    answer = [(query, series) for query in panel.queries for series in ask(query.expression)]
    margin = 0.9 / lines
    if panel.kind == "stat":
        _number(card, panel, answer)
        return
    axes = figure.add_axes((left + 0.036, bottom + 1.65 / lines, width - 0.044, height - 1.95 / lines - margin))
    kinds: dict[str, Callable[[Axes, Panel, Answer], None]] = {"heatmap": _heat, "state-timeline": _states}
    kinds.get(panel.kind, _lines)(axes, panel, answer)
    axes.set_axisbelow(True)
    axes.set_xlim(*(_date(at) for at in span))
    _mark_times(axes, span, most=5 if panel.width >= 8 else 2)
    axes.tick_params(labelsize=6.5, length=2)


def _number(axes: Axes, panel: Panel, answer: Answer) -> None:
    told = [(_name(query, series, "") if query.legend != "__auto" else "", series) for query, series in answer]
    for place, (name, series) in enumerate(told):
        value = next((v for v in reversed(series.values) if math.isfinite(v)), math.nan)
        colour = _COLOURS[0]
        for least, named in panel.thresholds:
            if len(panel.thresholds) > 1 and value >= least:
                colour = _NAMED[named]
        middle = 0.78 - (place + 0.5) / len(told) * 0.72
        axes.text(
            0.5, middle, _said(value, panel.unit), ha="center", va="center", fontsize=17, color=colour, weight="bold"
        )
        axes.text(0.5, middle - 0.21, _folded(name), ha="center", va="center", fontsize=6.5, color=_FAINT)


def _lines(axes: Axes, panel: Panel, answer: Answer) -> None:
    axes.grid(visible=True, linewidth=0.6)
    names = [_name(query, series, panel.title.lower()) for query, series in answer]
    drawn = [(name, *_points(series)) for name, (_, series) in zip(names, answer, strict=True)]
    drawn = [one for one in drawn if np.nansum(np.abs(one[2])) > 0] or drawn[:1]  # an empty series needs no legend
    if panel.is_stacked and drawn:
        times = np.unique(np.concatenate([at for _, at, _ in drawn]))
        below = np.zeros(len(times))
        step = float(np.median(np.diff(times))) if len(times) > 1 else 1e-5
        for place, (name, at, values) in enumerate(drawn):
            here = np.zeros(len(times))
            here[np.searchsorted(times, at)] = np.nan_to_num(values)
            colour = _COLOURS[place % len(_COLOURS)]
            if panel.is_bars:
                axes.bar(times, here, width=step, bottom=below, color=colour, alpha=0.75, label=name, linewidth=0)
            else:
                axes.fill_between(times, below, below + here, color=colour, alpha=0.3, linewidth=0)
                axes.plot(times, below + here, color=colour, linewidth=0.9, label=name)
            below += here
    else:
        for name, at, values in drawn:
            axes.plot(at, values, linewidth=1.2, label=name)
    if panel.is_logarithmic and any((values > 0).any() for _, _, values in drawn):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=6))
        axes.yaxis.set_minor_locator(NullLocator())
    elif drawn and min(np.nanmin(values, initial=0) for _, _, values in drawn) >= 0 and panel.title != "Loss":
        axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: _said(value, panel.unit))
    if drawn:
        columns = min(len(drawn), max(1, 4 if panel.width >= 8 else 2))
        axes.legend(
            loc="upper left", bbox_to_anchor=(-0.1, -0.1), ncols=columns, fontsize=6, handlelength=1, columnspacing=1
        )


def _heat(axes: Axes, _: Panel, answer: Answer) -> None:
    """Draw a heat map of the differences between neighbouring buckets, because counts are cumulative over ``le``."""
    ordered = sorted(answer, key=lambda one: float(one[1].labels["le"]))
    counted = [_points(series) for _, series in ordered]
    counts = np.diff(np.nan_to_num(np.stack([values for _, values in counted])), axis=0, prepend=0)
    bounds = [series.labels["le"] for _, series in ordered]
    used = np.flatnonzero(counts.sum(axis=1) > 0)
    low, high = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, len(bounds))
    shown = np.where(counts[low:high] > 0, counts[low:high], np.nan)
    axes.pcolormesh(counted[0][0], np.arange(high - low), shown, cmap="Oranges", shading="nearest", vmin=0)
    axes.set_yticks(np.arange(high - low), [f"≤ {float(bound):g} s" for bound in bounds[low:high]])


def _states(axes: Axes, panel: Panel, answer: Answer) -> None:
    ordered = sorted(answer, key=lambda one: one[1].times[0], reverse=True)
    for place, (_, series) in enumerate(ordered):
        at, values = _points(series)
        step = 1 / 86400 if len(at) < 2 else float(np.min(np.diff(at)))
        spans = [(begin, step) for begin, value in zip(at, values, strict=True) if value]
        axes.broken_barh(spans, (place - 0.35, 0.7), facecolors=_COLOURS[place % len(_COLOURS)])
    axes.set_yticks([])
    axes.set_ylim(-0.6, max(0.6, len(ordered) - 0.4))
    for place, (query, series) in enumerate(ordered):
        axes.text(
            0.01,
            place,
            _name(query, series, panel.title),
            transform=axes.get_yaxis_transform(),
            va="center",
            fontsize=6.5,
        )


def _points(series: Series) -> tuple[np.ndarray, np.ndarray]:
    times = np.array([_date(at) for at in series.times])
    return times, np.array([value if math.isfinite(value) else math.nan for value in series.values])


def _mark_times(axes: Axes, span: Span, *, most: int) -> None:
    begin, end = span
    step = next((step for step in _TICK_SECONDS if (end - begin) / step <= most), _TICK_SECONDS[-1])
    ticks = np.arange(math.ceil(begin / step) * step, end, step)
    form = "%H:%M" if step % 60 == 0 else "%H:%M:%S"
    axes.set_xticks([_date(at) for at in ticks], [f"{datetime.fromtimestamp(at, UTC):{form}}" for at in ticks])


def _date(at: float) -> float:
    return float(date2num(datetime.fromtimestamp(at, UTC)))


def _name(query: Query, series: Series, otherwise: str) -> str:
    """Remove the address from a legend: there is only one server and one training."""
    return re.sub(r",? ?127\.0\.0\.1:\d+ ?", "", query.name(series.labels)) or otherwise


def _folded(text: str, width: int = 44) -> str:
    lines = [""]
    for word in text.split():
        short = word if len(word) <= 20 else f"{word[:8]}…"
        if len(lines[-1]) + len(short) > width:
            lines.append("")
        lines[-1] += f"{short} "
    return "\n".join(lines)


def _said(value: float, unit: str) -> str:
    """Format a number in Grafana's unit."""
    if not math.isfinite(value):
        return "-"
    match unit:
        case "s" if value and abs(value) < 0.0999:
            return f"{value * 1000:.3g} ms"
        case "s" if abs(value) >= 60:
            return f"{value / 60:.3g} min"
        case "s":
            return f"{value:.3g} s"
        case "percentunit":
            return f"{value:.3g}" if 0 < abs(value) < 0.001 else f"{value:.1%}".replace(".0%", "%")
        case "bytes":
            return f"{value / 2**30:.3g} GiB"
        case "reqps" | "ops":
            return f"{value:.2g}/s"
        case _:
            return f"{value:.3g}"
