"""Check Lithograph on a device and measure it: ``make gpu-check``, or ``python -m benchmarks.gpu_check``.

The exit code is 1 if a check failed. A check that cannot run here is skipped with its reason, and fails nothing.
"""

import sys
import time
from pathlib import Path

import click

from benchmarks.gpu_check.checks import Record, Status
from benchmarks.gpu_check.running.groups import GROUPS, PART_SECONDS, Group
from benchmarks.gpu_check.running.processes import ROOT, run_group
from benchmarks.gpu_check.running.report import summary, table, write
from benchmarks.gpu_check.settings import Settings

_LEAST_SECONDS = 10.0
"""A group is not started with less time than this left."""
_SLOWER = 3
"""The factor of a group's time at the embedded model's size, which is for machines that are slow or shared."""


@click.command()
@click.option("--part", type=click.Choice(["1", "2", "3", "all"]), default="all", show_default=True)
@click.option("--device", default="cuda", show_default=True, help="cpu, cuda or cuda:N.")
@click.option("--size", type=click.Choice(["full", "embedded"]), default="full", show_default=True)
@click.option("--model", help="Flavour, directory or hub id with real weights; by default they are random.")
@click.option("--only", default="", help='Checks whose "group: name" contains this.')
@click.option("--short", "is_short", is_flag=True, help="A few groups, one measurement each.")
@click.option("--part-seconds", default=PART_SECONDS, show_default=True, help="The most time of a part.")
@click.option(
    "--folder", type=click.Path(path_type=Path), default=ROOT / "build" / "gpu_check", help="Report, logs, models."
)
def main(
    part: str, device: str, size: str, model: str | None, only: str, is_short: bool, part_seconds: float, folder: Path
) -> None:
    """Run the checks and write the report."""
    _require(device)
    folder.mkdir(parents=True, exist_ok=True)
    settings = Settings(
        device=device, size=size, model=model or None, scratch=str(folder.absolute()), is_short=is_short, only=only
    )
    begin = time.monotonic()
    records = [record for number in _parts(part) for record in run_part(number, settings, part_seconds)]
    paths = write(records, settings, seconds=time.monotonic() - begin, folder=folder)
    print(f"\n{table(records)}\n\n{summary(records)}; {paths[0]}, {paths[1]}")
    sys.exit(any(record.status is Status.FAILED for record in records))


def run_part(part: int, settings: Settings, part_seconds: float) -> list[Record]:
    """Run the groups of a part; those for which no time is left are skipped."""
    begin, records = time.monotonic(), list[Record]()
    for group in (group for group in GROUPS if group.part == part and _is_chosen(group, settings)):
        left = part_seconds - (time.monotonic() - begin)
        if left < _LEAST_SECONDS:
            reason = f"the part's {part_seconds:.0f} s were over"
            records.append(Record(part=part, group=group.name, name="all", status=Status.SKIPPED, reason=reason))
            print(records[-1].line, flush=True)
            continue
        records += run_group(group, settings, seconds=min(group.seconds * (1 if settings.is_full else _SLOWER), left))
    return records


def _parts(part: str) -> tuple[int, ...]:
    return (1, 2, 3) if part == "all" else (int(part),)


def _is_chosen(group: Group, settings: Settings) -> bool:
    """Return True if a group has checks to run; the names of a group's checks are known to its process alone."""
    is_named = ":" not in settings.only or settings.only.split(":")[0] in group.name
    return is_named and (group.is_short or not settings.is_short)


def _require(device: str) -> None:
    """Refuse a device that this machine does not have, before anything is measured."""
    if device == "cpu":
        return
    from longcat.errors import DeviceError
    from longcat.model.device.choice import parse_device  # imports torch

    try:
        parse_device(device)
    except DeviceError as error:
        raise click.ClickException(f"{error}; without a GPU: make gpu-check DEVICE=cpu SIZE=embedded") from error


if __name__ == "__main__":
    main()
