"""Run the benchmarks whose ratios the documentation quotes, and compare them with the last committed figures.

``figures.json`` has for each quoted ratio its command, the place in the command's JSON, the figure, whether more is better,
and its noise: the part by which runs on one quiet machine differ. Exit code 1 if a ratio is worse by more than its noise, or
a command fails. ``--update`` writes the new figures. Not part of the tests: it takes half an hour on a quiet machine.
"""

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter

FIGURES = Path(__file__).with_name("figures.json")


class Quoted(BaseModel):
    """A ratio that the documentation quotes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    command: str
    """Arguments of ``python -m``."""
    place: tuple[str | int, ...]
    """Keys and indices in the command's JSON."""
    figure: float
    better: Literal["more", "less"]
    noise: float
    """A part of the figure."""

    def is_worse(self, measured: float) -> bool:
        """Return True if a measured ratio is worse than the figure by more than the noise."""
        if self.better == "more":
            return measured < self.figure * (1 - self.noise)
        return measured > self.figure * (1 + self.noise)

    def found_in(self, report: Any) -> float:
        """Return the ratio in a command's JSON. Raises ``LookupError`` if it is not there."""
        for key in self.place:
            report = report[key]
        return float(report)


def main() -> None:
    """Measure, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figures", type=Path, default=FIGURES, help="file of the committed figures")
    parser.add_argument("--update", action="store_true", help="write the measured figures")
    parser.add_argument("--only", help="only ratios with this in their name")
    arguments = parser.parse_args()
    kept = TypeAdapter(list[Quoted])
    quoted = kept.validate_json(arguments.figures.read_bytes())
    chosen = [ratio for ratio in quoted if arguments.only is None or arguments.only in ratio.name]
    reports = {command: run(command) for command in dict.fromkeys(ratio.command for ratio in chosen)}
    measured = {ratio.name: ratio.found_in(reports[ratio.command]) for ratio in chosen}
    print("\n".join(table(chosen, measured)))
    if arguments.update:
        updated = [
            ratio.model_copy(update={"figure": round(measured.get(ratio.name, ratio.figure), 3)}) for ratio in quoted
        ]
        arguments.figures.write_bytes(kept.dump_json(updated, indent=1) + b"\n")
    elif any(ratio.is_worse(measured[ratio.name]) for ratio in chosen):
        sys.exit(1)


def run(command: str) -> Any:
    """Run a benchmark and return its JSON; its progress goes to stderr. Ends this process if it fails."""
    print(f"python -m {command}", file=sys.stderr, flush=True)
    done = subprocess.run([sys.executable, "-m", *shlex.split(command)], stdout=subprocess.PIPE, check=False)
    if done.returncode:
        sys.exit(f"python -m {command}: exit code {done.returncode}")
    return json.loads(done.stdout)


def table(quoted: Sequence[Quoted], measured: dict[str, float]) -> list[str]:
    """Return a Markdown table of the ratios."""
    lines = ["| ratio | committed | measured | noise | |", "|---|---|---|---|---|"]
    for ratio in quoted:
        value = measured[ratio.name]
        verdict = "worse" if ratio.is_worse(value) else ""
        lines.append(f"| {ratio.name} | {ratio.figure:.3g} | {value:.3g} | {ratio.noise:.0%} | {verdict} |")
    return lines


if __name__ == "__main__":
    main()
