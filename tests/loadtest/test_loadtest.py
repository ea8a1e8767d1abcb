"""The load test: its users detect wrong replies, its thresholds can be crossed, and a short run ends in a report."""

import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from loadtest.suite.mix import load_requests, zipf_shares
from loadtest.suite.sample import Measurement, ScenarioOutcome, read
from loadtest.suite.scenarios import SCENARIOS, judge
from tests import ROOT

AT_REST = {
    "lithograph_requests_in_progress": 0.0,
    "lithograph_active_rows": 0.0,
    "lithograph_cancelled_requests_total": 3.0,
}


def sample(
    scenario: str, kind: str = "ClosedLoopUser", *, outcome: ScenarioOutcome = "picture", seconds: float = 1.0
) -> Measurement:
    return Measurement(
        scenario=scenario,
        kind=kind,
        begin_seconds=0.0,
        seconds=seconds,
        outcome=outcome,
        status=200,
        language="en",
        adapter=None,
        size="128x128",
        steps=4,
        prompt="a cat",
        first_event_seconds=0.1 if kind == "StreamingUser" else None,
    )


@pytest.fixture
def samples() -> dict[str, list[Measurement]]:
    found = {scenario.name: [sample(scenario.name, kind) for kind in scenario.users] for scenario in SCENARIOS}
    found["flood"].append(sample("flood", outcome="refused", seconds=0.01))
    return found


def crossed(samples: dict[str, list[Measurement]], at_rest: dict[str, float]) -> set[str]:
    return {f"{threshold.scenario}: {threshold.what}" for threshold in judge(samples, at_rest) if not threshold.holds}


def test_thresholds_hold_when_all_is_well(samples: dict[str, list[Measurement]]) -> None:
    assert not crossed(samples, AT_REST)


@pytest.mark.parametrize("scenario", [scenario.name for scenario in SCENARIOS])
def test_one_failure_crosses_a_threshold(samples: dict[str, list[Measurement]], scenario: str) -> None:
    samples[scenario].append(sample(scenario, outcome="failed"))
    assert crossed(samples, AT_REST) == {f"{scenario}: requests that failed"}


@pytest.mark.parametrize("scenario", ["closed", "open", "rough"])
def test_slowness_crosses_a_threshold(samples: dict[str, list[Measurement]], scenario: str) -> None:
    kind = {"closed": "ClosedLoopUser"}.get(scenario, "OpenLoopUser")
    samples[scenario] += [sample(scenario, kind, seconds=100.0) for _ in range(20)]
    assert len(crossed(samples, AT_REST)) == 1


def test_nothing_measured_crosses_thresholds() -> None:
    empty: dict[str, list[Measurement]] = {scenario.name: [] for scenario in SCENARIOS}
    names = {name.partition(":")[0] for name in crossed(empty, AT_REST)}
    assert names == {"closed", "open", "rough", "flood"}


@pytest.mark.parametrize("name", AT_REST)
def test_a_server_that_is_not_at_rest_crosses_a_threshold(samples: dict[str, list[Measurement]], name: str) -> None:
    changed = AT_REST | {name: 0.0 if name.endswith("_total") else 1.0}
    assert len(crossed(samples, changed)) == 1


def test_few_adapters_are_popular() -> None:
    shares = zipf_shares(4, exponent=1.0)
    assert shares == pytest.approx([12 / 25, 6 / 25, 4 / 25, 3 / 25])
    asked = [load_request for load_request, _ in zip(load_requests(("a", "b", "c"), seed=1), range(2000), strict=False)]
    counted = Counter(load_request.adapter for load_request in asked)
    assert counted["a"] > counted["b"] > counted["c"] > 0
    assert counted[None] == pytest.approx(400, abs=80)
    assert Counter(load_request.language for load_request in asked) == {"zh": 1000, "en": 1000}
    assert len({load_request.prompt for load_request in asked}) == 2000


class NoPicture(BaseHTTPRequestHandler):
    """Replies to everything with one status and content that is not a picture."""

    status = 200

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(self.status)
        self.send_header("Retry-After", "1")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"no")

    def log_message(self, *_: object) -> None:
        """Log nothing."""


class Full(NoPicture):
    """Replies 429 to everything."""

    status = 429


@contextmanager
def running(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def python(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command: Sequence[str | Path] = (sys.executable, *arguments)
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)


@pytest.mark.parametrize(("handler", "outcome"), [(NoPicture, "failed"), (Full, "refused")])
def test_users_record_a_wrong_reply_as_failed_and_429_as_refused(
    handler: type[BaseHTTPRequestHandler], outcome: str, tmp_path: Path
) -> None:
    file = tmp_path / "samples.jsonl"
    kinds = ("ClosedLoopUser", "OpenLoopUser", "StreamingUser", "SlowUser")
    options = ("--headless", "--users", "6", "--spawn-rate", "6", "--run-time", "2s", "--stop-timeout", "60")
    with running(handler) as url:
        finished = python(
            *("-m", "locust", "--locustfile", "loadtest/suite/locustfile.py", "--host", url, *options),
            *("--samples", file, "--rate", "50", *kinds),
        )
    assert finished.returncode == (1 if outcome == "failed" else 0), finished.stderr
    assert {(one.kind, one.outcome) for one in read(file)} == {(kind, outcome) for kind in kinds}


def test_a_short_run_ends_in_a_report(tmp_path: Path) -> None:
    finished = python("-m", "loadtest.suite", "--seconds", "6", "--adapters", "2", "--output", tmp_path)
    # Tests do not judge speed: exit code 1 is accepted if only a time limit was exceeded.
    assert finished.returncode in (0, 1), finished.stderr
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    rows = {row["name"]: row for row in report["scenarios"]}
    assert list(rows) == [scenario.name for scenario in SCENARIOS]
    problems = [
        one.problem for scenario in SCENARIOS for one in read(tmp_path / f"{scenario.name}.jsonl") if one.problem
    ]
    assert not problems
    assert all(row["picture"] > 0 and row["failed"] == 0 for row in rows.values()), finished.stderr
    assert rows["flood"]["refused"] > 0
    assert rows["rough"]["left"] > 0
    after = {
        threshold["what"]: threshold["holds"] for threshold in report["thresholds"] if threshold["scenario"] == "after"
    }
    assert len(after) == 3
    assert all(after.values())
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 4
    assert "data:image/png;base64," in page
    assert 'src="http' not in page
    assert {path.name for path in tmp_path.glob("*.png")} == {
        f"{name}.png" for name in ("latency", "throughput", "percentiles", "adapters")
    }
