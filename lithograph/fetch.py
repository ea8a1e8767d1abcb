"""``lithograph fetch``: downloads a model's weights before a service or training needs them."""

from pathlib import Path

import click

from lithograph.terminal import fail
from longcat.errors import ConfigError
from longcat.model.flavour import resolve


@click.command()
@click.option("--flavour", envvar="LITHOGRAPH_SERVE_FLAVOUR", default="final", show_default=True,
              help="final, dev, embedded, a directory or a hub id.")  # fmt: skip
@click.option("--revision", envvar="LITHOGRAPH_SERVE_REVISION", help="The hub's branch, tag or commit.")
@click.option("--config", type=click.Path(dir_okay=False, path_type=Path),
              help="config.json of a training whose model to download, instead of a flavour.")  # fmt: skip
def fetch(flavour: str, revision: str | None, config: Path | None) -> None:
    """Download a model unless the cache has it, verify it, and print its directory.

    Downloads go to HF_HOME; an interrupted one is resumed. With HF_HUB_OFFLINE=1, nothing is downloaded. The variables of
    `serve`, LITHOGRAPH_SERVE_FLAVOUR and LITHOGRAPH_SERVE_REVISION, are read, too.
    """
    if config is not None:
        flavour, revision = _trained_on(config)
    found = resolve(flavour, revision=revision)
    size_mb = sum(path.stat().st_size for path in found.folder.rglob("*") if path.is_file()) / 1e6
    click.echo(f"{found.name}: {size_mb:,.0f} MB in {found.folder}, hash {found.hash}")


def _trained_on(config: Path) -> tuple[str, str | None]:
    """Return a training's flavour and revision; a wrong configuration exits as in ``lithograph train``."""
    from trainer.commands.configuration import read_config
    from trainer.record.outcome import Outcome

    try:
        training = read_config(config, [])
    except ConfigError as error:
        fail(error, Outcome.BAD_CONFIG)
    return training.flavour, training.revision
