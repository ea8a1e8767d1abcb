"""Runs a check on generated cases, and measures each: no case may take more than a second of CPU time."""

import json
import os
import resource
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import hypothesis
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from hypothesis.errors import HypothesisWarning

from longcat.errors import LithographError

_Case = TypeVar("_Case")
ROUNDS_VARIABLE = "LITHOGRAPH_FUZZ_ROUNDS"
REPORT_VARIABLE = "LITHOGRAPH_FUZZ_REPORT"
FIRST_SEED_VARIABLE = "LITHOGRAPH_FUZZ_SEED"
NO_SWEEPS_VARIABLE = "LITHOGRAPH_FUZZ_NO_SWEEPS"
"""Set if the cases of sweeps, which are the same each time, have been run already."""
LIMIT_SECONDS = 1.0
LONGEST_CHARACTERS = 50_000
_SLOW_TWICE = 2
"""Number of attempts that must be slow to fail, because the first case of a kind imports modules and fills caches."""


@dataclass(kw_only=True)
class Tally:
    """Measurements of one check's cases."""

    cases: int = 0
    slowest_seconds: float = 0.0
    peak_bytes_first: int = 0
    """Peak memory of the process after the first round."""
    peak_bytes: int = 0


def check_error(error: LithographError) -> None:
    """Check that an error's sentences can be filled in, are short, and can be sent to another process or a page."""
    text = str(error)
    assert text.encode()
    assert len(text) < LONGEST_CHARACTERS
    for problem in error.problems:
        json.dumps(problem.to_json())


TALLIES: dict[str, Tally] = {}
"""Tallies by the name of the check."""


def write_report() -> None:
    """Write the measurements into the file that the campaign reads."""
    if (path := os.environ.get(REPORT_VARIABLE)) is not None:
        Path(path).write_text(json.dumps({name: asdict(tally) for name, tally in TALLIES.items()}), encoding="utf-8")


def try_all(
    name: str,
    check: Callable[..., None],
    *strategies: st.SearchStrategy[object],
    cases: int,
    clock: Callable[[], float] = time.process_time,
) -> None:
    """Run a check on cases of the strategies, as many rounds as the campaign has, each with other cases.

    ``clock``: the CPU time to measure in seconds, by default this process's.
    """
    rounds, first = int(os.environ.get(ROUNDS_VARIABLE, "1")), int(os.environ.get(FIRST_SEED_VARIABLE, "0"))
    tally = TALLIES.setdefault(name, Tally())

    def measured(*values: object) -> None:
        tally.cases += 1
        for attempt in range(_SLOW_TWICE):
            begun = clock()
            check(*values)
            seconds = clock() - begun
            if seconds <= LIMIT_SECONDS:
                break
            assert attempt + 1 < _SLOW_TWICE, f"{seconds:.1f} s of the processor"
        tally.slowest_seconds = max(tally.slowest_seconds, seconds)

    for number in range(rounds):
        settings = hypothesis.settings(
            max_examples=cases, database=None, deadline=None, derandomize=False, print_blob=False,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
        )  # fmt: skip
        run = hypothesis.seed(first + number)(settings(hypothesis.given(st.tuples(*strategies))(_spread(measured))))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", HypothesisWarning)  # long cases have long representations
            run()
        tally.peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        tally.peak_bytes_first = tally.peak_bytes_first or tally.peak_bytes
        write_report()


def sweep(
    name: str,
    check: Callable[[_Case], None],
    cases: Sequence[_Case],
    *,
    clock: Callable[[], float] = time.process_time,
) -> None:
    """Run a check on all of the cases, and report all that fail."""
    if NO_SWEEPS_VARIABLE in os.environ:
        return
    failures: dict[str, _Case] = {}
    tally = TALLIES.setdefault(name, Tally())
    for case in cases:
        tally.cases += 1
        begun = clock()
        try:
            check(case)
        except Exception as error:  # reported below, once for each kind
            places = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
            failures.setdefault(f"{type(error).__name__}: {str(error)[:300]} ({', '.join(places[-3:])})", case)
        tally.slowest_seconds = max(tally.slowest_seconds, clock() - begun)
    write_report()
    assert not failures, "\n".join(f"{error}\n    {str(case)[:500]}" for error, case in failures.items())


def _spread(measured: Callable[..., None]) -> Callable[[tuple[object, ...]], None]:
    def on_one(values: tuple[object, ...]) -> None:
        measured(*values)

    return on_one
