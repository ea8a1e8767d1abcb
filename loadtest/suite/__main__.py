"""The command ``make loadtest``: run all scenarios against one server and write a report.

Without ``--host`` it makes adapters, starts a server of its own with the embedded model, and stops it. Requests come from
locust, one run a scenario. Exit code 1 if a threshold is crossed.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from loadtest.servers import ROOT, running, service
from loadtest.suite import report
from loadtest.suite.sample import Measurement, read
from loadtest.suite.scenarios import MAX_QUEUE, SCENARIOS, Scenario, judge, pictures_per_second
from loadtest.traffic.adapters import RANK, make_adapters, publish
from loadtest.traffic.figures import machine

_LEAST_RATE = 0.1
_STOP_SECONDS = 600
"""Time for requests under way when a scenario ends."""
_REST_SECONDS = 60.0
_AT_REST = ("lithograph_requests_in_progress", "lithograph_active_rows", "lithograph_cancelled_requests_total")


def main() -> None:
    """Run the scenarios, check the thresholds, write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of load, all scenarios together")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "loadtest")
    parser.add_argument("--adapters", type=int, default=6, help="number of adapters to publish; 0 for none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--host", help="a server that runs already, with --max-queue 12, instead of one of our own")
    parser.add_argument("--adapter-names", default="", help="with --host: its adapters, the most popular first")
    arguments = parser.parse_args()
    about = machine()
    folder: Path = arguments.output
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for old in (*folder.glob("*.jsonl"), *(folder / "pictures").glob("*.png")):
        old.unlink()
    samples: dict[str, list[Measurement]] = {}
    with tempfile.TemporaryDirectory(prefix="loadtest-") as scratch, _server(arguments, Path(scratch)) as (url, names):
        for number, scenario in enumerate(SCENARIOS):
            rate = scenario.load * pictures_per_second(samples.get("closed", ()))
            seconds = scenario.share * arguments.seconds
            print(f"{scenario.name}: {scenario.about}, {seconds:.0f} s", file=sys.stderr)
            samples[scenario.name] = _load(
                scenario, url, names, folder, seconds=seconds, rate=max(rate, _LEAST_RATE), seed=arguments.seed + number
            )
        at_rest = _at_rest(url)
    thresholds = judge(samples, at_rest)
    page = report.write(folder, samples, thresholds, about)
    for threshold in thresholds:
        sign = ">=" if threshold.is_least else "<="
        verdict = "ok  " if threshold.holds else "FAIL"
        print(
            f"{verdict} {threshold.scenario}: {threshold.what}: {threshold.measured:.4g} ({sign} {threshold.limit:.4g})"
        )
    print(f"report: {page}")
    sys.exit(not all(threshold.holds for threshold in thresholds))


@contextmanager
def _server(arguments: argparse.Namespace, scratch: Path) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield the server's URL and the names of its adapters."""
    if arguments.host:
        yield arguments.host, [name for name in arguments.adapter_names.split(",") if name]
        return
    files = make_adapters(scratch / "files", arguments.adapters)
    storage = (scratch / "storage").as_uri()
    publish(files, storage=storage)
    options = ["--max-queue", str(MAX_QUEUE)]
    if files:
        options += ["--adapters", storage, "--adapter-rank", str(RANK)]
        options += [text for name in files for text in ("--require-adapter", name)]
    recipe = service("server", dtype="float32", options=options)
    with running([recipe], scratch) as servers, servers[recipe.name].awake():
        yield servers[recipe.name].url, list(files)


def _load(
    scenario: Scenario, url: str, adapters: Sequence[str], folder: Path, *, seconds: float, rate: float, seed: int
) -> list[Measurement]:
    """Run locust once and return its measurements."""
    file = folder / f"{scenario.name}.jsonl"
    options = {
        "host": url, "users": scenario.clients, "spawn-rate": scenario.clients, "run-time": f"{max(1, round(seconds))}s",
        "stop-timeout": _STOP_SECONDS, "exit-code-on-error": 0, "loglevel": "WARNING", "scenario": scenario.name,
        "adapters": ",".join(adapters), "rate": rate, "seed": seed, "samples": file, "pictures": folder / "pictures",
    }  # fmt: skip
    command = [
        *(
            sys.executable,
            "-m",
            "locust",
            "--locustfile",
            "loadtest/suite/locustfile.py",
            "--headless",
            "--only-summary",
        ),
        *(text for name, value in options.items() for text in (f"--{name}", str(value))),
        *scenario.users,
    ]
    finished = subprocess.run(command, cwd=ROOT, stdout=sys.stderr, check=False)
    if finished.returncode or not file.exists():
        raise SystemExit(
            f"locust ended with {finished.returncode} and wrote {'something' if file.exists() else 'nothing'}"
        )
    return list(read(file))


def _at_rest(url: str) -> dict[str, float]:
    """Return the server's metrics once it is idle, or after a time limit."""
    deadline = time.monotonic() + _REST_SECONDS
    while True:
        text = httpx.get(f"{url}/metrics", trust_env=False, timeout=30).text
        values = {
            name: sum(map(float, re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))) for name in _AT_REST
        }
        if (
            time.monotonic() > deadline
            or not values["lithograph_requests_in_progress"] + values["lithograph_active_rows"]
        ):
            return values
        time.sleep(0.5)


if __name__ == "__main__":
    main()
