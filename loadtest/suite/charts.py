"""Charts of the measurements: SVG for the page, PNG for other uses."""

import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from loadtest.suite.mix import zipf_shares
from loadtest.suite.sample import Measurement, ScenarioOutcome, latencies

Measurements = Mapping[str, Sequence[Measurement]]

COLOURS = {"solo": "#8a63d2", "closed": "#2a78d6", "open": "#1a9e6f", "rough": "#e0821b", "flood": "#c2407e"}
_OUTCOMES: dict[ScenarioOutcome, str] = {
    "picture": "#2a78d6",
    "refused": "#e0a21b",
    "left": "#9a9a9a",
    "failed": "#d43a3a",
}
_INK = "#767676"
"""A colour readable on white and on black; the page replaces it by the text's colour."""
_BIN_SECONDS = 2.0
_PERCENTILES = np.arange(0, 100.5, 0.5)


def charts(samples: Measurements) -> dict[str, Figure]:
    """Return all charts by name."""
    draw: dict[str, Callable[[Axes, Measurements], None]] = {
        "latency": _latency,
        "throughput": _throughput,
        "percentiles": _percentiles,
        "adapters": _adapters,
    }
    return {name: _figure(samples, one, wide=name in ("latency", "throughput")) for name, one in draw.items()}


def save(figures: Mapping[str, Figure], folder: Path) -> None:
    """Render as PNG, on white."""
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=150, facecolor="white")


def svg(figure: Figure) -> str:
    """Render as SVG for a page: transparent, in the text's colour."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :].replace(_INK, "currentColor")


def _figure(samples: Measurements, draw: Callable[[Axes, Measurements], None], *, wide: bool) -> Figure:
    figure = Figure(figsize=(10 if wide else 4.9, 3.2), layout="constrained")
    axes = figure.add_subplot()
    draw(axes, samples)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_INK)
    axes.tick_params(colors=_INK)
    axes.grid(axis="y", color=_INK, alpha=0.2, linewidth=0.6)
    axes.set_axisbelow(True)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(_INK)
    if (legend := axes.get_legend()) is not None:
        legend.set_frame_on(False)
        for text in legend.get_texts():
            text.set_color(_INK)
    return figure


def _start(samples: Measurements) -> float:
    return min(s.begin_seconds for s in chain.from_iterable(samples.values()))


def _latency(axes: Axes, samples: Measurements) -> None:
    start = _start(samples)
    for name, some in samples.items():
        drawn = [s for s in some if s.outcome == "picture"]
        begins = [s.begin_seconds - start for s in drawn]
        axes.scatter(begins, [s.seconds for s in drawn], s=14, color=COLOURS[name], alpha=0.75, label=name, linewidth=0)
        if drawn:
            p95 = float(np.percentile(latencies(drawn), 95))
            axes.hlines(p95, min(begins), max(begins), color=COLOURS[name], linewidth=1.2)
            axes.annotate(f"p95 {p95:.1f} s", (max(begins), p95), (0, 3), textcoords="offset points", ha="right",
                          color=COLOURS[name], fontsize=8)  # fmt: skip
    axes.set_title("Latency of each picture, by time of request", loc="left", color=_INK)
    axes.set_xlabel("s since the start")
    axes.set_ylabel("s")
    axes.set_ylim(bottom=0)
    axes.legend(ncols=len(samples), loc="upper left", fontsize=8)


def _throughput(axes: Axes, samples: Measurements) -> None:
    start = _start(samples)
    everything = list(chain.from_iterable(samples.values()))
    edges = np.arange(0, max(s.end_seconds for s in everything) - start + _BIN_SECONDS, _BIN_SECONDS)
    bottom = np.zeros(len(edges) - 1)
    for outcome, colour in _OUTCOMES.items():
        ends = [s.end_seconds - start for s in everything if s.outcome == outcome]
        if not ends:
            continue
        rates = np.histogram(ends, edges)[0] / _BIN_SECONDS
        axes.bar(edges[:-1], rates, _BIN_SECONDS * 0.9, bottom=bottom, align="edge", color=colour, label=outcome)
        bottom += rates
    for name, some in samples.items():
        if some:
            first = min(s.begin_seconds for s in some) - start
            axes.axvline(first, color=_INK, linewidth=0.6, alpha=0.5)
            axes.annotate(name, (first, 1), (3, -2), xycoords=("data", "axes fraction"), textcoords="offset points",
                          va="top", color=_INK, fontsize=8)  # fmt: skip
    axes.set_title("Throughput: requests finished a second", loc="left", color=_INK)
    axes.set_xlabel("s since the start")
    axes.set_ylabel("requests / s")
    axes.set_ylim(top=1.2 * max(bottom))
    axes.legend(loc="center left", fontsize=8)


def _percentiles(axes: Axes, samples: Measurements) -> None:
    for name, some in samples.items():
        if seconds := latencies(some):
            axes.plot(
                _PERCENTILES, np.percentile(seconds, _PERCENTILES), color=COLOURS[name], label=name, linewidth=1.8
            )
    axes.set_title("Latency by percentile", loc="left", color=_INK)
    axes.set_xlabel("percent of pictures")
    axes.set_ylabel("s")
    axes.set_ylim(bottom=0)
    axes.set_xticks([0, 50, 90, 100])
    axes.legend(loc="upper left", fontsize=8)


def _adapters(axes: Axes, samples: Measurements) -> None:
    counted = Counter(s.adapter for s in chain.from_iterable(samples.values()) if s.adapter is not None)
    names = sorted(counted)
    places = range(len(names))
    axes.bar(places, [counted[name] for name in names], 0.7, color="#2a78d6", label="requests")
    expected = [share * counted.total() for share in zipf_shares(len(names))] if names else []
    axes.plot(places, expected, color="#e0821b", marker="o", markersize=4, linewidth=1.2, label="Zipf")
    axes.set_xticks(places, names, rotation=30, ha="right")
    axes.set_title("Requests by adapter", loc="left", color=_INK)
    axes.legend(loc="upper right", fontsize=8)
