"""``lithograph verify``: what a picture file says about how it was made, and whether its parts agree."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from lithograph.terminal import echo_table
from longcat.errors import ConfigError
from longcat.problem import show
from longcat.storage.regular import open_regular
from service.wire.picture import Recipe, metadata_in, recipe_of
from service.wire.provenance.credential import read_roots
from service.wire.provenance.packet import GENERATED_SOURCE, content_id_of
from service.wire.provenance.verification import ManifestUnreadableError, read_manifest


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
    roots = None if trust is None else read_roots(trust)
    facts = _facts(file) | _signature(file, roots)
    if as_json:
        click.echo(json.dumps(facts, indent=1, ensure_ascii=False))
    else:
        echo_table([("PROPERTY", "VALUE"), *((name, _shown(value)) for name, value in facts.items())])
    if facts.get("problems"):
        sys.exit(1)


def _facts(file: Path) -> dict[str, Any]:
    found = metadata_in(file, name=str(file))
    label = _label_of(found.get("TC260:AIGC"))
    recipe = recipe_of(found, name=str(file)) if "lithograph:recipe" in found else None
    return {
        "file": str(file),
        "made by a model": found.get("Iptc4xmpExt:DigitalSourceType") == GENERATED_SOURCE,
        "producer": label.get("ContentProducer"),
        "id": label.get("ProduceID"),
        "recipe": None if recipe is None else json.loads(recipe.as_json()),
        "label and recipe agree": _agree(label, recipe),
    }


def _signature(file: Path, roots: str | None) -> dict[str, Any]:
    """Return what the C2PA manifest of a file says. ``metadata_in`` has checked the file's size."""
    with open_regular(file) as stream:
        content = stream.read()
    try:
        manifest = read_manifest(content, trust=roots)
    except ManifestUnreadableError as error:
        return {"signed": True, "intact": False, "problems": [str(error)]}
    except ConfigError as error:
        return {"signed": None, "not checked": error.problems[0].problem}
    if manifest is None:
        return {"signed": False}
    return {
        "signed": True,
        "intact": manifest.is_intact,
        "problems": list(manifest.failures),
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


def _label_of(text: str | None) -> dict[str, Any]:
    """Return the fields of China's implicit label; none for one that is no JSON object."""
    try:
        fields = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def _agree(label: dict[str, Any], recipe: Recipe | None) -> bool | None:
    """Return whether the label's id is that of the recipe; None if one of them is missing."""
    if recipe is None or "ProduceID" not in label:
        return None
    return bool(label["ProduceID"] == content_id_of(recipe.as_json()))


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
