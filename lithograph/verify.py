"""``lithograph verify``: what a picture file says about how it was made, and whether its parts agree."""

import json
from pathlib import Path
from typing import Any

import click

from lithograph.terminal import echo_table
from longcat.problem import show
from service.wire.picture import Recipe, metadata_in, recipe_of
from service.wire.provenance import GENERATED_SOURCE, content_id_of


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(file: Path, as_json: bool) -> None:
    """Show the label and the recipe that FILE carries: a PNG, JPEG or WebP.

    The label's id follows from the recipe, so that a recipe that was exchanged is found. Nothing here is signed: who changes
    a file can write both again.
    """
    facts = _facts(file)
    if as_json:
        click.echo(json.dumps(facts, indent=1, ensure_ascii=False))
        return
    echo_table([("PROPERTY", "VALUE"), *((name, _shown(value)) for name, value in facts.items())])


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
        "signed": False,
    }


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
    return json.dumps(value, ensure_ascii=False)
