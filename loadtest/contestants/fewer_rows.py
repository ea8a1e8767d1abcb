"""Fewer rows a picture, beside the defaults on one server: turbo, balanced and fast, in interleaved rounds of a closed loop.

Requests give neither steps nor guidance: those of the embedded model apply, 16 steps with guidance, or those that the
packaged adapter ``turbo`` declares, 4 without. The qualities are measured at ``--many-steps``, too, against exact pictures
in as many. Exit code 1 if a request failed.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from loadtest.servers import running, service
from loadtest.traffic.figures import Figures, machine, medians, ratios, report, table
from loadtest.traffic.requests import ImageRequest, prompts
from loadtest.traffic.traffic import Mix, closed_loop

_DEFAULT = "default"
_WAYS: Mapping[str, Mapping[str, Any]] = {
    _DEFAULT: {},
    "turbo": {"adapter": "turbo"},
    "balanced": {"quality": "balanced"},
    "fast": {"quality": "fast"},
}


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32", help="float32 or bfloat16")
    parser.add_argument("--clients", type=int, nargs="+", default=[8, 1])
    parser.add_argument("--many-steps", type=int, default=50)
    parser.add_argument("--pictures", type=int, default=6, help="a client and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    about, texts, failed = machine(), prompts(arguments.seed), 0
    content, tables = {}, []
    with tempfile.TemporaryDirectory(prefix="loadtest-") as scratch:
        setup = service("lithograph", dtype=arguments.dtype, options=[])
        with running([setup], Path(scratch)) as servers:
            (server,) = servers.values()
            for clients in arguments.clients:
                for steps in (None, arguments.many_steps):
                    ways = [way for way in _WAYS if steps is None or way != "turbo"]
                    figures: dict[str, list[Figures]] = {way: [] for way in ways}
                    for number in range(arguments.rounds + 1):
                        for way in ways:
                            each = arguments.pictures if number else 1
                            work = Mix().for_clients(texts, clients=clients, each=each, seed=arguments.seed + number)
                            changed = [[_changed(request, steps, way) for request in requests] for requests in work]
                            result = closed_loop(server, changed)
                            failed += len(result.failed)
                            if number:  # the first is to warm up
                                figures[way].append(result.figures())
                    name = f"{clients} clients, {steps or 'default'} steps"
                    compared = {way: ratios(figures[way], figures[_DEFAULT]) for way in ways if way != _DEFAULT}
                    content[name] = {
                        "figures": figures,
                        "ratios": {way: {"median": medians(given), "rounds": given} for way, given in compared.items()},
                    }
                    tables.append(table({f"{way}, {name}": medians(given) for way, given in figures.items()}))
                    tables.append(table({f"{way} / default, {name}": medians(r) for way, r in compared.items()}))
    measured = {
        "measured": "fewer rows a picture, beside the defaults",
        "settings": vars(arguments),
        "machine": about,
        "failed": failed,
    }
    report(measured | content, tables)
    sys.exit(bool(failed))


def _changed(request: ImageRequest, steps: int | None, way: str) -> ImageRequest:
    return replace(request, steps=steps, guidance_scale=None, **_WAYS[way])


if __name__ == "__main__":
    main()
