"""The guard of quoted ratios, with a benchmark that prints what a test gives it."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks.guard import __main__ as guard


@pytest.fixture
def figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "measures.py").write_text(
        "import json, sys\nprint(json.dumps({'rounds': [{'speed': float(sys.argv[1])}]}))\nsys.exit(sys.argv[2:] == ['bad'])"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path / "figures.json"


def run(figures: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str, **changes: object) -> None:
    ratio = {
        "name": "speed", "command": "measures 1.8", "place": ["rounds", 0, "speed"], "figure": 2.0, "better": "more",
        "noise": 0.15,
    } | changes  # fmt: skip
    figures.write_text(json.dumps([ratio]))
    monkeypatch.setattr(sys, "argv", ["guard", "--figures", str(figures), *arguments])
    guard.main()


def test_a_ratio_within_its_noise_passes(
    figures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(figures, monkeypatch)
    assert "| speed | 2 | 1.8 | 15% |  |" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changes", [{"command": "measures 1.6"}, {"better": "less", "figure": 1.5}, {"command": "measures 2 bad"}]
)
def test_a_worse_ratio_and_a_failed_benchmark_do_not(
    figures: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(figures, monkeypatch, **changes)
    assert ended.value.code


def test_figures_are_updated(figures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(figures, monkeypatch, "--update", command="measures 1.5")
    assert json.loads(figures.read_text())[0]["figure"] == 1.5


def test_the_committed_figures_can_be_read() -> None:
    quoted = json.loads(guard.FIGURES.read_bytes())
    assert all(guard.Quoted.model_validate(ratio) for ratio in quoted)
    assert len({ratio["name"] for ratio in quoted}) == len(quoted)
