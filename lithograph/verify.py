"""``lithograph verify``: what a picture file says about how it was made, and whether its parts agree."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from lithograph.terminal import echo_table
from longcat.problem import show
from service.wire.provenance.credential import read_roots
from service.wire.provenance.inspection import PictureOrigin, origin_of


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--trust", metavar="FILE", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="PEM file of root certificates, by which the issuer of a signature is known.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(file: Path, trust: Path | None, as_json: bool) -> None:
    """Show what FILE carries: a PNG, JPEG or WebP with a label, a recipe or a C2PA signature.

    A signature covers every byte of the file but its own. Without one, whoever changes a file can write label and recipe
    again: they are only compared with each other. No other host is called. Exits with 1 if there is a signature and it does
    not hold.
    """
    roots = None if trust is None else read_roots(trust, field="--trust")
    facts = _facts(file, roots)
    if as_json:
        click.echo(json.dumps(facts, indent=1, ensure_ascii=False))
    else:
        echo_table([("PROPERTY", "VALUE"), *((name, _shown(value)) for name, value in facts.items())])
    if facts.get("problems"):
        sys.exit(1)


def _facts(file: Path, roots: str | None) -> dict[str, Any]:
    origin = origin_of(file, name=str(file), trust=roots)
    return {
        "file": str(file),
        "made by a model": origin.is_labelled,
        "from another picture": origin.is_edit if origin.is_labelled else None,
        "producer": origin.producer,
        "id": origin.content_id,
        "recipe": None if origin.recipe is None else json.loads(origin.recipe.as_json()),
        "label and recipe agree": origin.agrees,
        "signed": origin.is_signed,
        **_signature(origin, roots),
    }


def _signature(origin: PictureOrigin, roots: str | None) -> dict[str, Any]:
    """Return what the C2PA manifest of a file says."""
    if origin.unchecked is not None:
        return {"not checked": origin.unchecked.problem}
    if origin.damage is not None:
        return {"intact": False, "problems": list(origin.problems)}
    manifest = origin.manifest
    if manifest is None:
        return {}
    return {
        "intact": manifest.is_intact,
        "problems": list(origin.problems),
        "signed by": manifest.signer,
        "issuer": _issuer(manifest.is_trusted, roots),
        "software": manifest.software,
        "actions": list(manifest.actions),
        "made from": list(manifest.ingredients),
    }


def _issuer(is_trusted: bool, roots: str | None) -> str:
    if is_trusted:
        return "known, by --trust"
    return "unknown: give root certificates with --trust" if roots is None else "unknown: none of the roots in --trust"


def _shown(value: object) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case str():
            return show(value)
        case list():
            return "; ".join(map(show, value)) or "none"
    return json.dumps(value, ensure_ascii=False)
