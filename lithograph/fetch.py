"""``lithograph fetch``: a model's weights, once, before anything is started that needs them."""

import click

from longcat.flavour import resolve


@click.command()
@click.option("--flavour", default="final", show_default=True, help="final, dev, embedded, a directory or a hub id.")
@click.option("--revision", help="The hub's branch, tag or commit.")
def fetch(flavour: str, revision: str | None) -> None:
    """Download a model unless it is there, check that it is whole, and say where it is.

    Downloads go to HF_HOME; one that was interrupted goes on. With HF_HUB_OFFLINE=1, what was fetched is all there is.
    """
    found = resolve(flavour, revision=revision)
    size_mb = sum(path.stat().st_size for path in found.folder.rglob("*") if path.is_file()) / 1e6
    click.echo(f"{found.name}: {size_mb:,.0f} MB in {found.folder}, hash {found.hash}")
