"""The pieces of a campaign. Each is one pytest process with a file of measurements, so that a campaign can be resumed."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests import ROOT
from tests.conftest import RunningServer
from tests.fuzz.cases import FIRST_SEED_VARIABLE, NO_SWEEPS_VARIABLE, REPORT_VARIABLE, ROUNDS_VARIABLE
from tests.fuzz.conftest import HTTP_PROCESS_VARIABLE, URL_VARIABLE
from tests.service.family import Family

_ROUNDS = 4
"""Rounds of one piece."""

Tallies = dict[str, dict[str, float]]


class Pieces:
    """A runner of the pieces against one service, which sums their measurements."""

    def __init__(
        self, server: RunningServer, report: Path, scratch: Path, files: Sequence[str], *, resume: bool
    ) -> None:
        """``report``: the directory of measurements and logs; ``files``: the tests to run, by default all."""
        self._report, self._scratch, self._resume = report, scratch, resume
        self._files = files or [str(ROOT / "tests" / "fuzz")]
        self._environment = os.environ | {
            URL_VARIABLE: server.url, HTTP_PROCESS_VARIABLE: str(Family(server).http.pid),
        }  # fmt: skip

    def run(self, *, rounds: int, seed: int) -> dict[str, Any]:
        """Run all pieces; return their exit code, seconds and summed measurements."""
        sums: Tallies = {}
        exit_code = seconds = 0
        for first in range(seed, seed + rounds, _ROUNDS):
            piece = self._run_piece(first, min(_ROUNDS, seed + rounds - first), has_sweeps=first == seed)
            exit_code, seconds = max(exit_code, piece["exit_code"]), seconds + piece["seconds"]
            for name, tally in piece["checks"].items():
                _add(sums.setdefault(name, {}), tally)
        return {"exit_code": exit_code, "rounds": rounds, "seconds": seconds, "checks": sums}

    def _run_piece(self, seed: int, rounds: int, *, has_sweeps: bool) -> dict[str, Any]:
        made = self._report / f"piece-{seed}.json"
        if self._resume and made.exists():
            known: dict[str, Any] = json.loads(made.read_text(encoding="utf-8"))
            if known["exit_code"] == 0:
                return known
        tallies = self._report / "piece.json"
        tallies.write_text("{}", encoding="utf-8")
        environment = self._environment | {
            ROUNDS_VARIABLE: str(rounds), FIRST_SEED_VARIABLE: str(seed), REPORT_VARIABLE: str(tallies),
            **({} if has_sweeps else {NO_SWEEPS_VARIABLE: "1"}),
        }  # fmt: skip
        command = [sys.executable, "-m", "pytest", "--override-ini=addopts=", f"--basetemp={self._scratch}", "-q"]
        begun = time.monotonic()
        with (self._report / f"piece-{seed}.log").open("wb") as log:
            done = subprocess.run(
                [*command, *self._files], cwd=ROOT, env=environment, stdout=log, stderr=log, check=False
            )
        piece = {
            "exit_code": done.returncode, "seconds": round(time.monotonic() - begun),
            "checks": json.loads(tallies.read_text(encoding="utf-8")),
        }  # fmt: skip
        made.write_text(json.dumps(piece, indent=1), encoding="utf-8")
        return piece


def _add(total: dict[str, float], piece: dict[str, float]) -> None:
    total["cases"] = total.get("cases", 0) + piece["cases"]
    total["peak_bytes_first"] = total.get("peak_bytes_first") or piece["peak_bytes_first"]
    for name in ("slowest_seconds", "peak_bytes"):
        total[name] = max(total.get(name, 0.0), piece[name])
