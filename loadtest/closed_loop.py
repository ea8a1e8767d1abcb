"""Closed loop: pictures a second, latency and CPU time of the service and of each baseline.

By default 8 clients, each with its own adapter, 4, 8, 12 or 20 steps, 128 px, Chinese and English prompts. Servers are
measured in turn, in rounds; the others are suspended meanwhile. All generate the same pictures, which are compared. Exit
code 1 if a request failed.
"""

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path

from loadtest.contestants.comparison import OURS, compare, interleave
from loadtest.contestants.contestants import BASELINES, add_options, contestants, settings, steps_option
from loadtest.servers import running
from loadtest.traffic.figures import machine, report
from loadtest.traffic.requests import prompts
from loadtest.traffic.traffic import Mix, closed_loop


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, servers=(OURS, *BASELINES), adapters=8)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--steps", type=steps_option, default=Mix.steps)
    parser.add_argument("--pictures", type=int, default=8, help="a client and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=Mix.size_px, help="in px")
    arguments = parser.parse_args()
    about = machine()
    with tempfile.TemporaryDirectory(prefix="loadtest-") as scratch:
        recipes, adapters = contestants(arguments, Path(scratch))
        mix = Mix(steps=arguments.steps, adapters=adapters, size_px=arguments.size)
        texts = prompts(arguments.seed)
        works = [
            mix.for_clients(texts, clients=arguments.clients, each=each, seed=arguments.seed + number)
            for number, each in enumerate([len(mix.steps), *[arguments.pictures] * arguments.rounds])
        ]
        with running(recipes, Path(scratch)) as servers:
            interleave(servers, [partial(closed_loop, work=works[0])])  # warm-up
            results = interleave(servers, [partial(closed_loop, work=work) for work in works[1:]])
    content, tables = compare(results)
    report({"measured": "closed loop", "settings": settings(arguments), "machine": about, **content}, tables)
    sys.exit(bool(content["failed"]))


if __name__ == "__main__":
    main()
