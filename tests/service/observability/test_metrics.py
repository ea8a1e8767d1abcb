"""Every panel of the dashboard and every rule, on a real Prometheus after load on a real service and a real training."""

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from longcat.model.flavour import Flavour
from longcat.storage.opening import open_storage
from recipes.dashboard import board, picture, workload
from recipes.dashboard.prometheus import Prometheus, Series, running
from tests import ROOT
from tests.conftest import free_port
from tests.deploy.test_dashboard import DRAWN
from tests.trainer.trainings import write_pictures

RULES = ROOT / "deploy" / "prometheus" / "rules.yaml"
RATE_SECONDS = 10
ROWS_SECONDS = 240
PANELS = {panel.title: panel for row in board.rows(RATE_SECONDS).values() for panel in row}


class Seen:
    """A Prometheus with data since ``begin``."""

    def __init__(self, prometheus: Prometheus, url: str) -> None:
        self.prometheus = prometheus
        self.url = url
        """URL of the service."""
        self.begin = time.time()

    def has_rows(self, expression: str) -> bool:
        """Return True if a query has returned numbers."""
        now = time.time()
        found = self.prometheus.query_range(expression, begin=self.begin, end=now, step_seconds=1)
        return any(math.isfinite(value) for series in found for value in series.values)

    def rules(self) -> list[dict[str, Any]]:
        """Return every rule as reported by Prometheus, with its health."""
        return [rule for group in self.prometheus.get("/rules")["groups"] for rule in group["rules"]]

    def wait_for(self, expressions: list[str]) -> list[str]:
        """Wait for rows; return the queries without any at the time limit."""
        deadline = time.monotonic() + ROWS_SECONDS
        while expressions := [one for one in expressions if not self.has_rows(one)]:
            if time.monotonic() > deadline:
                break
            time.sleep(1)
        return expressions


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, flavour: Flavour) -> Iterator[Seen]:
    folder = tmp_path_factory.mktemp("seen")
    pictures = write_pictures(folder / "pictures")
    service_port, trainer_port, prometheus_port = free_port(), free_port(), free_port()
    storage = open_storage((folder / "adapters").as_uri())
    targets = {"lithograph": f"127.0.0.1:{service_port}", "lithograph-trainer": f"127.0.0.1:{trainer_port}"}
    options = {
        "model_flavour": "embedded", "instance_data_dir": pictures, "output_dir": folder / "run", "resolution": 128,
        "cache_dir": folder / "cache", "train_batch_size": 1, "max_train_steps": 20, "checkpointing_steps": 5,
        "lora_rank": 4, "validation_num_inference_steps": 2, "validation_steps": 10, "adapter_name": "ink",
        "publish_to": storage.uri,
    }  # fmt: skip
    with ExitStack() as stack:
        prometheus = stack.enter_context(running(folder, prometheus_port, RULES, targets))
        service = stack.enter_context(workload.serving(folder, service_port, storage))
        begun = Seen(prometheus, service.url)
        arguments = [f"{key}={value}" for key, value in options.items()]
        with workload.training(folder, trainer_port, arguments) as training:
            assert training.wait(timeout=300) == 0, (folder / "train.log").read_text()
        workload.publish_styles(storage, folder / "run" / "adapter.safetensors", flavour)
        workload.publish_torn(storage)
        with workload.StyleLoad(service.url, people=6, styles=workload.STYLES):
            begun.wait_for([query.expression for panel in PANELS.values() for query in panel.queries])
        yield begun


def test_every_panel_is_on_the_dashboard() -> None:
    assert set(PANELS) == {panel["title"] for panel in DRAWN}


@pytest.mark.parametrize("title", PANELS)
def test_every_query_of_a_panel_has_rows(seen: Seen, title: str) -> None:
    assert [query for query in PANELS[title].queries if not seen.has_rows(query.expression)] == []


def test_what_the_variables_offer_is_there(seen: Seen) -> None:
    for metric in ("lithograph_ready", "lithograph_trainer_step"):
        labels = seen.prometheus.get("/label/instance/values", **{"match[]": metric, "start": seen.begin})
        assert len(labels) == 1


def test_the_first_refused_adapter_is_an_alert(seen: Seen) -> None:
    assert seen.has_rows("increase(lithograph_adapter_refusals_total[5m]) > 0")


def test_every_rule_is_evaluated_without_an_error(seen: Seen) -> None:
    deadline = time.monotonic() + ROWS_SECONDS
    while "unknown" in {rule["health"] for rule in seen.rules()} and time.monotonic() < deadline:
        time.sleep(1)  # a group is first evaluated at its own interval, not at Prometheus' start
    assert len(seen.rules()) > 15
    assert [(rule["name"], rule.get("lastError")) for rule in seen.rules() if rule["health"] != "ok"] == []


def test_prometheus_takes_the_metrics_as_openmetrics(seen: Seen) -> None:
    targets = {t["labels"]["job"]: t for t in seen.prometheus.get("/targets")["activeTargets"]}
    assert targets["lithograph"]["health"] == "up", targets
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    assert httpx.get(f"{seen.url}/metrics", headers=accept).text.endswith("# EOF\n")


def test_the_dashboard_can_be_drawn(seen: Seen, tmp_path: Path) -> None:
    def ask(query: str) -> list[Series]:
        return seen.prometheus.query_range(query, begin=seen.begin, end=time.time(), step_seconds=2)

    picture.draw(board.rows(RATE_SECONDS), ask, (seen.begin, time.time()), tmp_path / "board.png")
    with Image.open(tmp_path / "board.png") as drawn:
        assert drawn.width > 1000
        assert len(drawn.convert("RGB").getcolors(2**16) or ()) > 30
