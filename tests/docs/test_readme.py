"""The README in both languages and the project's files: the same commands, existing make targets, one version."""

import re
import tomllib
from pathlib import Path

import click
import pytest
import yaml

from lithograph.__main__ import cli
from tests import ROOT
from tests.docs.pages import blocks

ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh.md"
GUIDE = ROOT / "docs" / "guide"
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yaml"


@pytest.mark.parametrize(
    ("english", "chinese"),
    [(ENGLISH, CHINESE), *((page, page.with_suffix(".zh.md")) for page in sorted(GUIDE.glob("*[!h].md")))],
    ids=lambda page: page.name,
)
def test_both_languages_show_the_same_commands(english: Path, chinese: Path) -> None:
    for language in ("bash", "console", "python"):
        shown = [[block.code for block in blocks(page, language)] for page in (english, chinese)]
        assert shown[0] == shown[1]


@pytest.mark.parametrize("page", [ENGLISH, CHINESE], ids=lambda page: page.name)
def test_readme_fits_and_starts_with_the_two_commands(page: Path) -> None:
    assert len(page.read_text(encoding="utf-8").splitlines()) <= 150
    assert blocks(page, "bash")[0].code == ["make serve", "make test"]


@pytest.mark.parametrize(
    "page", [ENGLISH, ROOT / "CONTRIBUTING.md", *sorted(GUIDE.glob("*[!h].md"))], ids=lambda page: page.name
)
def test_commands_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE)) <= TARGETS
    named = set(re.findall(r"(?:^|`|bin/)lithograph ([a-z]+)", text, re.MULTILINE))
    assert named <= set(cli.list_commands(click.Context(cli)))


def test_both_readmes_compare_the_same_projects_and_properties() -> None:
    tables = []
    for page in (ENGLISH, CHINESE):
        rows = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
        tables.append(([row.count("|") for row in rows], rows[0], [re.findall(r"\[\d\]", row) for row in rows]))
    assert tables[0] == tables[1]


def test_ci_runs_the_make_targets_that_a_developer_types() -> None:
    workflow = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))
    runs = " ".join(step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"])
    called = set(re.findall(r"\bmake ([a-z-]+)(?=\s|$)", runs)) - {"python"}
    assert called <= TARGETS
    assert called >= {"lint", "test", "images", "test-images"}
    local = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert {"make lint", "make test"} <= set(local.splitlines())


def test_the_citation_has_the_package_s_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (str(citation["version"]), citation["license"]) == (project["version"], project["license"])


@pytest.mark.parametrize(
    "form", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.y*ml")), ids=lambda form: form.name
)
def test_issue_forms_are_well_formed(form: Path) -> None:
    content = yaml.safe_load(form.read_text(encoding="utf-8"))
    if form.name != "config.yml":
        ids = [field["id"] for field in content["body"] if field["type"] != "markdown"]
        assert {"name", "description", "body"} <= content.keys()
        assert len(set(ids)) == len(ids)
