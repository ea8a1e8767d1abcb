"""The alerts, checked by Prometheus' promtool, and the compose files."""

import importlib
import re
import subprocess
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY, generate_latest

from tests import ROOT
from trainer.record.metrics import TrainerMetrics

importlib.import_module("service.observability.metrics")  # registers its metrics

PROMETHEUS = ROOT / "deploy" / "prometheus"
RULES = yaml.safe_load((PROMETHEUS / "rules.yaml").read_text())
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"] if "alert" in rule]


def promtool(*command: str, given: str | None = None) -> str:
    result = subprocess.run(
        ["promtool", *command], capture_output=True, text=True, check=False, cwd=PROMETHEUS, input=given
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def test_the_rules_are_well_formed() -> None:
    promtool("check", "rules", "rules.yaml")


def test_every_alert_fires_in_its_cases_alone() -> None:
    promtool("test", "rules", "rules_test.yaml")


@pytest.mark.parametrize("alert", [alert["alert"] for alert in ALERTS])
def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not(alert: str) -> None:
    cases = yaml.safe_load((PROMETHEUS / "rules_test.yaml").read_text())["tests"]
    asked = [case for test in cases for case in test.get("alert_rule_test", []) if case["alertname"] == alert]
    assert any(case.get("exp_alerts") for case in asked)
    assert any(not case.get("exp_alerts") for case in asked)


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: str(alert["alert"]))
def test_every_alert_has_a_severity_a_summary_and_a_runbook(alert: dict[str, dict[str, str]]) -> None:
    assert alert["labels"]["severity"]
    assert alert["annotations"]["summary"]
    page, _, section = alert["annotations"]["runbook_url"].partition("#")
    headings = re.findall(r"^## (.*)$", (ROOT / page).read_text(), re.MULTILINE)
    assert section in {heading.lower().replace(" ", "-") for heading in headings}


def test_every_metric_of_the_service_that_a_rule_names_is_exported() -> None:
    exported = {metric.name for metric in REGISTRY.collect()}
    expressions = " ".join(str(rule["expr"]) for group in RULES["groups"] for rule in group["rules"])
    named = set(re.findall(r"(?<![\w:])lithograph_(?!trainer_)[a-z_]+(?![\w:])", expressions))
    assert named
    unknown = {name for name in named if re.sub(r"_(total|bucket|count|sum)$", "", name) not in exported}
    assert unknown == set()


def test_promtool_accepts_names_units_and_help_texts() -> None:
    trainer = TrainerMetrics(total_steps=9)
    values = dict.fromkeys(
        ("loss", "learning_rate", "gradient_norm", "images_per_second", "eta_seconds", "last_step_timestamp_seconds"),
        1.0,
    )
    trainer.stepped(1, seconds=1, images=1, values=values)
    trainer.cached("latents", hits=1, made=1)
    trainer.checkpointed(1)
    trainer.state("running")
    trainer.phase("training")
    exposed = generate_latest(REGISTRY) + generate_latest(trainer.registry)
    assert promtool("check", "metrics", given=exposed.decode()) == ""


def read_compose(name: str) -> Any:
    """Read a compose file with the defaults of its variables."""
    return yaml.safe_load(re.sub(r"\$\{\w+:?-([^}]*)\}", r"\1", (ROOT / name).read_text()))


def test_compose_mounts_existing_files_and_scrapes_existing_services() -> None:
    compose = read_compose("compose.yaml")
    services = compose["services"]
    assert read_compose("compose.gpu.yaml")["services"].keys() <= services.keys()
    for one in services.values():
        for volume in one.get("volumes", ()):
            source = volume.partition(":")[0]
            assert (ROOT / source).exists() if source.startswith(".") else source in compose["volumes"]
        assert set(one.get("depends_on", ())) <= services.keys()
        assert ":latest" not in one["image"]
        assert ":" in one["image"]
    prometheus = yaml.safe_load((PROMETHEUS / "prometheus.yaml").read_text())
    hosts = {
        target.partition(":")[0]
        for job in prometheus["scrape_configs"]
        for config in job["static_configs"]
        for target in config["targets"]
    }
    assert hosts <= services.keys()
    provisioning = ROOT / "deploy" / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "lithograph.yaml").read_text())["providers"]
    assert f"./deploy/grafana/dashboards:{provider['options']['path']}:ro" in services["grafana"]["volumes"]
