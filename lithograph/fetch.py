"""``lithograph fetch``: a model's weights, once, before anything is started that needs them."""

import sys
from pathlib import Path

import click

from longcat.errors import ConfigError
from longcat.flavour import resolve


@click.command()
@click.option("--flavour", envvar="LITHOGRAPH_SERVE_FLAVOUR", default="final", show_default=True,
              help="final, dev, embedded, a directory or a hub id.")  # fmt: skip
@click.option("--revision", envvar="LITHOGRAPH_SERVE_REVISION", help="The hub's branch, tag or commit.")
@click.option("--config", type=click.Path(dir_okay=False, path_type=Path),
              help="A training's config.json: what it trains on, instead of a flavour.")  # fmt: skip
def fetch(flavour: str, revision: str | None, config: Path | None) -> None:
    """Download a model unless it is there, check that it is whole, and say where it is.

    Downloads go to HF_HOME; one that was interrupted goes on. With HF_HUB_OFFLINE=1, what was fetched is all there is.
    What `serve` is told in the environment is fetched, too.
    """
    if config is not None:
        flavour, revision = _trained_on(config)
    found = resolve(flavour, revision=revision)
    size_mb = sum(path.stat().st_size for path in found.folder.rglob("*") if path.is_file()) / 1e6
    click.echo(f"{found.name}: {size_mb:,.0f} MB in {found.folder}, hash {found.hash}")


def _trained_on(config: Path) -> tuple[str, str | None]:
    """Ends like ``lithograph train`` if the configuration cannot be: a Job tries neither again."""
    from trainer.commands import read_config
    from trainer.outcome import Outcome

    try:
        training = read_config(config, [])
    except ConfigError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(int(Outcome.BAD_CONFIG))
    return training.flavour, training.revision
