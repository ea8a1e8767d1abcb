"""The report of a load test: one self-contained HTML page, PNG charts, and JSON."""

import base64
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import jinja2

from loadtest.suite.charts import charts, save, svg
from loadtest.suite.sample import Measurement, latencies
from loadtest.suite.scenarios import SCENARIOS, Threshold, pictures_per_second
from loadtest.traffic.figures import percentile

_PERCENTS = (50, 90, 95, 99, 100)
_SHOWN_PROBLEMS = 20
_SHOWN_PICTURES = 16


def write(
    folder: Path,
    samples: Mapping[str, Sequence[Measurement]],
    thresholds: Sequence[Threshold],
    machine: Mapping[str, Any],
) -> Path:
    """Write ``report.html``, ``report.json`` and charts; return the page's path. Raises ``ValueError`` without samples."""
    everything = list(chain.from_iterable(samples.values()))
    if not everything:
        raise ValueError("no requests were sent, so there is no report")
    rows = [_row(scenario.name, scenario.about, samples[scenario.name]) for scenario in SCENARIOS]
    content = {
        "machine": machine,
        "scenarios": rows,
        "thresholds": [asdict(t) | {"holds": t.holds} for t in thresholds],
    }
    (folder / "report.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    figures = charts(samples)
    save(figures, folder)
    template = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    ).get_template("report.html.jinja")
    page = folder / "report.html"
    page.write_text(
        template.render(
            when=time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(everything[0].begin_seconds)) + " UTC",
            machine=", ".join(f"{name} {value}" for name, value in machine.items()),
            passed=all(threshold.holds for threshold in thresholds),
            charts={name: svg(figure) for name, figure in figures.items()},
            rows=rows,
            thresholds=thresholds,
            problems=[f"{s.scenario} {s.kind}: {s.problem}" for s in everything if s.problem][:_SHOWN_PROBLEMS],
            pictures=[
                (s, base64.b64encode((folder / "pictures" / s.picture).read_bytes()).decode("ascii"))
                for s in everything
                if s.picture is not None
            ][:_SHOWN_PICTURES],
        ),
        encoding="utf-8",
    )
    return page


def _row(name: str, about: str, samples: Sequence[Measurement]) -> dict[str, Any]:
    outcomes = Counter(s.outcome for s in samples)
    seconds = latencies(samples)
    return {
        "name": name,
        "about": about,
        "requests": len(samples),
        **{outcome: outcomes[outcome] for outcome in ("picture", "refused", "left", "failed")},
        "figures": [pictures_per_second(samples), *(percentile(seconds, percent) for percent in _PERCENTS)],
    }
