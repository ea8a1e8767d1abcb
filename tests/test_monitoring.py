"""The alerts, judged by Prometheus' own promtool."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client import REGISTRY

import service.metrics  # noqa: F401  registers its metrics

ROOT = Path(__file__).parent.parent
PROMETHEUS = ROOT / "deploy" / "prometheus"
RULES = yaml.safe_load((PROMETHEUS / "rules.yaml").read_text())
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"] if "alert" in rule]


def promtool(*command: str) -> None:
    result = subprocess.run(["promtool", *command], capture_output=True, text=True, check=False, cwd=PROMETHEUS)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_rules_are_well_formed() -> None:
    promtool("check", "rules", "rules.yaml")


def test_every_alert_fires_and_stays_silent_as_its_cases_say() -> None:
    promtool("test", "rules", "rules_test.yaml")


@pytest.mark.parametrize("alert", [alert["alert"] for alert in ALERTS])
def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not(alert: str) -> None:
    cases = yaml.safe_load((PROMETHEUS / "rules_test.yaml").read_text())["tests"]
    asked = [case for test in cases for case in test.get("alert_rule_test", []) if case["alertname"] == alert]
    assert any(case.get("exp_alerts") for case in asked)
    assert any(not case.get("exp_alerts") for case in asked)


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: str(alert["alert"]))
def test_every_alert_says_what_it_asks_of_whom_it_wakes(alert: dict[str, dict[str, str]]) -> None:
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
