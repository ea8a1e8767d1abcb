"""The turbo adapter beside the defaults, on one server: closed loop with 8 clients and with one, in interleaved rounds.

Requests give neither steps nor guidance: those of the embedded model apply, 16 steps with guidance, or those that the
packaged adapter ``turbo`` declares, 4 without. Exit code 1 if a request failed.
"""

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from loadtest.contestants.servers import running, service
from loadtest.traffic.figures import Figures, machine, medians, ratios, report, table
from loadtest.traffic.requests import ImageRequest, prompts
from loadtest.traffic.traffic import Mix, closed_loop

_MIXES = {"default": Mix(), "turbo": Mix(adapters=("turbo",))}


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32", help="float32 or bfloat16")
    parser.add_argument("--clients", type=int, nargs="+", default=[8, 1])
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
                figures: dict[str, list[Figures]] = {name: [] for name in _MIXES}
                for number in range(arguments.rounds + 1):
                    for name, mix in _MIXES.items():
                        each = arguments.pictures if number else 1
                        work = mix.for_clients(texts, clients=clients, each=each, seed=arguments.seed + number)
                        result = closed_loop(server, [list(map(_with_defaults, requests)) for requests in work])
                        failed += len(result.failed)
                        if number:  # the first is to warm up
                            figures[name].append(result.figures())
                rounds = ratios(figures["turbo"], figures["default"])
                content[f"{clients} clients"] = {"figures": figures, "ratios": rounds, "median": medians(rounds)}
                found = {f"{name}, {clients} clients": medians(given) for name, given in figures.items()}
                tables += [table(found), table({f"turbo / default, {clients} clients": medians(rounds)})]
    measured = {
        "measured": "turbo beside the defaults",
        "settings": vars(arguments),
        "machine": about,
        "failed": failed,
    }
    report(measured | content, tables)
    sys.exit(bool(failed))


def _with_defaults(request: ImageRequest) -> ImageRequest:
    return replace(request, steps=None, guidance_scale=None)


if __name__ == "__main__":
    main()
