"""The process of a group: ``python -m benchmarks.gpu_check.running.group NAME --module MODULE ...``."""

import importlib
from pathlib import Path

import click

from benchmarks.gpu_check.checks import GroupChecks
from benchmarks.gpu_check.kit import Kit
from benchmarks.gpu_check.settings import Settings
from longcat.logs import silence_import_noise


@click.command()
@click.argument("name")
@click.option("--part", type=int, required=True)
@click.option("--module", required=True, help="Has run(kit), or run(kit, argument).")
@click.option("--argument", default="")
@click.option("--settings", "as_json", required=True)
@click.option("--records", type=click.Path(path_type=Path), required=True)
def main(name: str, part: int, module: str, argument: str, as_json: str, records: Path) -> None:
    """Run the checks of one group."""
    silence_import_noise()
    settings = Settings.from_json(as_json)
    checks = GroupChecks(part, name, records, only=settings.only)
    kit = Kit(checks=checks, settings=settings)
    # Imported here: a package that is missing is the reason why a group is skipped, and not the end of the kit.
    checks.group(lambda: importlib.import_module(module).run(kit, *filter(None, [argument])))


if __name__ == "__main__":
    main()
