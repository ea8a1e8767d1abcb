"""The long campaign: ``python -m tests.fuzz --cases 100000``. It starts a service and a studio, and fuzzes both.

The tests of this folder run in rounds, each with other cases, against one service, so that a leak shows; then schemathesis
sends requests made from the OpenAPI documents of both, if ``--schemathesis`` names the program. Every two seconds, the
service's liveness and memory are measured. Exits 1 if anything failed.

Ten thousand cases are a piece, which one pytest process runs and whose measurements are a file of the report. ``--resume``
continues an interrupted campaign, and skips the pieces that have succeeded.
"""

import contextlib
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import httpx
from fastapi.openapi.utils import get_openapi

from studio.app import create_app
from studio.config import StudioConfig
from tests.conftest import RunningServer, free_port, serve
from tests.fuzz.conftest import ADMIN_KEY, publish_adapter, server_options
from tests.fuzz.pieces import Pieces
from tests.fuzz.vitals import Vitals

_CASES_A_ROUND = 2_500
"""Cases of all files in a round, without sweeps, which only the first piece makes."""
_MOST_GROWTH = 1.15
"""Memory at the end, as a multiple of that after the first tenth."""
_CHECKS = ",".join([
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
    "response_schema_conformance",
])  # fmt: skip


@click.command(help=__doc__)
@click.argument("files", nargs=-1, type=click.Path(exists=True))
@click.option("--cases", type=int, default=100_000, show_default=True, help="Generated cases of the tests, about.")
@click.option(
    "--seed", type=int, default=1_000, show_default=True, help="Seed of the first round; the others count on from it."
)
@click.option("--resume", is_flag=True, help="Skip the pieces that the report has already.")
@click.option("--schemathesis", type=click.Path(exists=True, dir_okay=False), help="The schemathesis program.")
@click.option(
    "--operation-cases", type=int, default=200, show_default=True, help="Cases of schemathesis for each operation."
)
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    default=Path("build/fuzz"),
    show_default=True,
    help="Directory of the report.",
)
def campaign(
    files: tuple[str, ...],
    cases: int,
    seed: int,
    resume: bool,
    schemathesis: str | None,
    operation_cases: int,
    report: Path,
) -> None:
    """Run all parts; write and print the measurements."""
    report = report.absolute()
    report.mkdir(parents=True, exist_ok=True)
    measured: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        folder = Path(scratch)
        publish_adapter(folder)
        with serve(folder, *server_options(folder)) as server, Vitals(server) as vitals:
            pieces = Pieces(server, report, folder / "tests", files, resume=resume)
            measured["tests"] = pieces.run(rounds=max(1, round(cases / _CASES_A_ROUND)), seed=seed)
            if schemathesis is not None:
                description = folder / "service.json"
                description.write_text(server_description(server))
                options = ["--header", f"Authorization: Bearer {ADMIN_KEY}"]
                measured["service"] = _schemathesis(
                    schemathesis, description, server.url, operation_cases, report / "service.log", _CHECKS, *options
                )
                with _studio(folder, server.url) as url:
                    (folder / "studio.json").write_text(json.dumps(_studio_description(folder)))
                    measured["studio"] = _schemathesis(
                        schemathesis,
                        folder / "studio.json",
                        url,
                        operation_cases,
                        report / "studio.log",
                        "not_a_server_error",
                    )
        measured["vitals"] = vitals.summary()
        (report / "server.log").write_text(server.log_text(), encoding="utf-8")
        measured["unforeseen"] = len(re.findall(r"Traceback \(most recent", server.log_text()))
    (report / "report.json").write_text(json.dumps(measured, indent=1), encoding="utf-8")
    _print(measured)
    failed = [name for name in ("tests", "service", "studio") if measured.get(name, {}).get("exit_code", 0)]
    if failed or measured["unforeseen"] or not vitals.is_well(most_growth=_MOST_GROWTH):
        raise SystemExit(1)


def server_description(server: RunningServer) -> str:
    """Return the OpenAPI document that the service publishes."""
    return httpx.get(f"{server.url}/openapi.json").text


def _studio_description(folder: Path) -> dict[str, Any]:
    app = create_app(StudioConfig(home=folder / "description", service_url="http://127.0.0.1:1"))
    return get_openapi(title="studio", version="0", routes=app.routes)


@contextlib.contextmanager
def _studio(folder: Path, service_url: str) -> Iterator[str]:
    port = free_port()
    command = [
        sys.executable, "-m", "lithograph", "server", "--port", str(port), "--home", str(folder / "studio"),
        "--service-url", service_url,
        "--data-root", str(folder),
    ]  # fmt: skip
    with (folder / "studio.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        time.sleep(5)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def _schemathesis(
    program: str, description: Path, url: str, cases: int, log: Path, checks: str, *options: str
) -> dict[str, Any]:
    command = [
        program, "run", str(description), "--url", url, "--max-examples", str(cases), "--checks", checks,
        "--continue-on-failure",
        "--request-timeout", "30", "--suppress-health-check", "all", *options,
    ]  # fmt: skip
    begun = time.monotonic()
    with log.open("wb") as stream:
        done = subprocess.run(command, stdout=stream, stderr=stream, check=False, cwd=log.parent)
    text = log.read_text(encoding="utf-8", errors="replace")
    generated = [int(number.replace(",", "")) for number in re.findall(r"([\d,]+) generated", text)]
    return {"exit_code": done.returncode, "cases": sum(generated), "seconds": round(time.monotonic() - begun)}


def _print(measured: dict[str, Any]) -> None:
    checks = measured["tests"]["checks"]
    click.echo(f"{'check':44} {'cases':>8} {'slowest s':>9} {'memory MiB':>15}")
    for name, tally in checks.items():
        memory = f"{int(tally['peak_bytes_first']) >> 20} -> {int(tally['peak_bytes']) >> 20}"
        click.echo(f"{name:44} {tally['cases']:>8} {tally['slowest_seconds']:>9.2f} {memory:>15}")
    click.echo(f"{'all':44} {sum(tally['cases'] for tally in checks.values()):>8}")
    for name in ("tests", "service", "studio", "vitals", "unforeseen"):
        if name in measured:
            shown = (
                {k: v for k, v in measured[name].items() if k != "checks"}
                if isinstance(measured[name], dict)
                else measured[name]
            )
            click.echo(f"{name}: {shown}")


if __name__ == "__main__":
    campaign()
