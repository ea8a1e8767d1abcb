"""The process of a group: ``python -m benchmarks.gpu_check.running.group GROUP --settings JSON --records FILE``."""

import importlib
from pathlib import Path

import click

from benchmarks.gpu_check.checks import Checks
from benchmarks.gpu_check.running.groups import GROUPS
from benchmarks.gpu_check.settings import Settings
from longcat.logs import silence_import_noise


@click.command()
@click.argument("name")
@click.option("--settings", "as_json", required=True)
@click.option("--records", type=click.Path(path_type=Path), required=True)
def main(name: str, as_json: str, records: Path) -> None:
    """Run the checks of one group."""
    group = next(group for group in GROUPS if group.name == name)
    settings = Settings.from_json(as_json)
    silence_import_noise()
    from benchmarks.gpu_check.kit import make_kit  # imports torch, after the noise is silenced

    kit = make_kit(Checks(group.part, group.name, records, only=settings.only), settings)
    module = importlib.import_module(f"benchmarks.gpu_check.{group.module}")
    if group.argument:
        module.run(kit, group.argument)
    else:
        module.run(kit)


if __name__ == "__main__":
    main()
