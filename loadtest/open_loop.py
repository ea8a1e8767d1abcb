"""Open loop at 90% of the plain baseline's capacity: latency of the service and of each baseline.

First a closed loop measures the plain baseline's capacity; then every server gets the same Poisson arrivals, in rounds.
Latency counts from a request's arrival; a round ends when all are answered. By default, the service alone follows: the time
to a newcomer's first step while four others run (``loadtest.newcomer``). Exit code 1 if a request failed.
"""

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path

from loadtest import newcomer
from loadtest.contestants.comparison import OURS, Results, compare, interleave
from loadtest.contestants.contestants import PLAIN, add_options, contestants, settings, steps_option
from loadtest.servers import running
from loadtest.traffic.figures import machine, median, report, table
from loadtest.traffic.requests import prompts
from loadtest.traffic.traffic import Mix, closed_loop, open_loop

_WARM_UP_CLIENTS = 8


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, servers=(OURS, PLAIN, "plain-batch4"), adapters=8)
    parser.add_argument("--load", type=float, default=0.9, help="of the plain baseline's capacity")
    parser.add_argument("--capacity", type=float, help="pictures a second, instead of measuring it")
    parser.add_argument("--steps", type=steps_option, default=Mix.steps)
    parser.add_argument("--requests", type=int, default=80, help="a server and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--newcomers", type=int, default=10, help="0 for none")
    arguments = parser.parse_args()
    about = machine()
    first = None
    with tempfile.TemporaryDirectory(prefix="loadtest-") as scratch:
        recipes, adapters = contestants(arguments, Path(scratch))
        mix = Mix(steps=arguments.steps, adapters=adapters)
        texts = prompts(arguments.seed)
        works = [
            mix.for_clients(texts, clients=_WARM_UP_CLIENTS, each=len(mix.steps), seed=arguments.seed + number)
            for number in (0, 1)
        ]
        with running(recipes, Path(scratch)) as servers:
            # The first run warms up, the second is the measurement.
            closed = interleave(servers, [partial(closed_loop, work=work) for work in works])
            capacity = arguments.capacity or _capacity(closed)
            rate, seed = arguments.load * capacity, arguments.seed + 2
            loads = [
                mix.arriving(texts, rate=rate, count=arguments.requests, seed=seed + number)
                for number in range(arguments.rounds)
            ]
            results = interleave(servers, [partial(open_loop, arrivals=load) for load in loads])
            if arguments.newcomers and OURS in servers:
                first = newcomer.measure(servers[OURS], mix, texts, repeats=arguments.newcomers)
    content, tables = compare(results)
    report(
        {
            "measured": "open loop",
            "settings": settings(arguments),
            "machine": about,
            "capacity_pictures_per_second": capacity,
            "arrivals_per_second": rate,
            **content,
            "newcomer": first,
        },
        [*tables, *([] if first is None else [table({"newcomer": first["summary"]})])],
    )
    sys.exit(bool(content["failed"] or (first and first["failed"])))


def _capacity(closed: Results) -> float:
    if PLAIN not in closed:
        raise SystemExit(f"the load is a share of the capacity of {PLAIN}: measure it too, or give --capacity")
    return median([result.figures()["pictures_per_second"] for result in closed[PLAIN][1:]])


if __name__ == "__main__":
    main()
