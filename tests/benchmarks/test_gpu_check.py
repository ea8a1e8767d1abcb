"""The GPU check's records: a failed check fails the run and not the others, and none is skipped without a reason."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks.gpu_check import __main__ as command
from benchmarks.gpu_check.running.groups import Group

MODULE = "tests.benchmarks.group_of_checks"
ENDS = {
    "raises": ("failed", "ValueError at group_of_checks.py:22: broken"),
    "requires": ("failed", "5 is more than 4"),
    "cannot run": ("skipped", "there is no such device"),
    "lacks a package": ("skipped", "the package not_a_package is not installed"),
    "passes": ("passed", ""),
}


def checked(folder: Path, *options: str) -> tuple[int, str, list[dict[str, Any]]]:
    """Return the exit code, the output, and the checks of the report."""
    arguments = ["--part", "1", "--device", "cpu", "--size", "embedded", "--folder", str(folder), *options]
    done = CliRunner().invoke(command.main, arguments)
    return done.exit_code, done.output, json.loads((folder / "report.json").read_text())["checks"]


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [Group(part=1, name=name, module=MODULE, argument=name) for name in ("crash", "all ends")]
    monkeypatch.setattr(command, "GROUPS", found)


def test_a_failed_check_fails_the_run_and_no_other_check(groups: None, tmp_path: Path) -> None:
    code, output, checks = checked(tmp_path)
    crashed, *others = checks
    assert code == 1
    assert (crashed["name"], crashed["status"]) == ("crashes", "failed")
    assert "exit code 3" in crashed["reason"]
    assert {check["name"]: (check["status"], check["reason"]) for check in others} == ENDS
    assert others[0]["figures"] == {"before_s": 1}  # what was measured before it failed
    assert "| 1 | all ends | passes | passed | 0.0 | product 12.35 ms |" in output
    assert "1 passed, 3 failed, 2 skipped" in output


def test_without_failures_the_run_succeeds(groups: None, tmp_path: Path) -> None:
    code, _, checks = checked(tmp_path, "--only", "all ends: passes")
    assert [check["status"] for check in checks] == ["passed"]
    assert code == 0


def test_groups_without_time_are_skipped_with_that_reason(groups: None, tmp_path: Path) -> None:
    code, _, checks = checked(tmp_path, "--part-seconds", "1")
    assert [(check["status"], check["reason"]) for check in checks] == [("skipped", "the part's 1 s were over")] * 2
    assert code == 0
