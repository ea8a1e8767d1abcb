"""The Grafana dashboard's file. tests/service/observability runs its queries on a real Prometheus."""

import importlib
import json
import re
from itertools import combinations
from typing import Any

import pytest

from tests import ROOT

GRAFANA = ROOT / "deploy" / "grafana"
BOARD: dict[str, Any] = json.loads((GRAFANA / "dashboards" / "lithograph.json").read_text())
PANELS: list[dict[str, Any]] = BOARD["panels"]
DRAWN = [panel for panel in PANELS if panel["type"] != "row"]


def test_the_file_is_what_the_generator_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(GRAFANA)
    generator = importlib.import_module("dashboard")
    assert generator.FILE.read_text() == generator.build(), "run: python deploy/grafana/dashboard.py"


def test_panels_have_ids_and_titles_of_their_own() -> None:
    for values in ([panel["id"] for panel in PANELS], [panel["title"] for panel in DRAWN]):
        assert len(set(values)) == len(values)


def test_panels_lie_within_the_grid_and_not_on_each_other() -> None:
    places = [panel["gridPos"] for panel in PANELS]
    assert all(
        place["x"] >= 0 and place["w"] > 0 and place["h"] > 0 and place["x"] + place["w"] <= 24 for place in places
    )
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above, (one, other)


@pytest.mark.parametrize("panel", DRAWN, ids=lambda panel: str(panel["title"]))
def test_every_panel_has_a_description_a_unit_and_the_chosen_source(panel: dict[str, Any]) -> None:
    assert panel["description"]
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["targets"]
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    for part in (panel, *panel["targets"]):
        assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_every_variable_that_a_query_names_is_there() -> None:
    there = {variable["name"] for variable in BOARD["templating"]["list"]}
    named = {
        name
        for panel in DRAWN
        for target in panel["targets"]
        for name in re.findall(r"\$(?!__)\{?(\w+)", target["expr"])
    }
    assert named == {"instance", "trainer"}
    assert named | {"datasource"} == there
