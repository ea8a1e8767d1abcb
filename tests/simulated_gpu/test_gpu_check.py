"""The GPU check in its short form on a simulated GPU, so that its first run on a real one finds no mistakes of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu_check.running.groups import GROUPS
from tests import ROOT

pytestmark = pytest.mark.simulated_gpu


def test_no_check_fails(tmp_path: Path) -> None:
    paths = os.pathsep.join([str(Path(__file__).parent / "startup"), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_check", "--size", "embedded", "--short", "--folder", tmp_path],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    checks = json.loads((tmp_path / "report.json").read_text())["checks"]
    assert not [check for check in checks if check["status"] == "failed"], done.stdout
    assert done.returncode == 0, done.stderr
    assert {check["group"] for check in checks} == {group.name for group in GROUPS if group.is_short}
    assert all(check["reason"] for check in checks if check["status"] == "skipped")
