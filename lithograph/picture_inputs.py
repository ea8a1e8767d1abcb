"""The pictures that ``lithograph generate`` and ``edit`` start from: their options, and a recipe's."""

import hashlib
from pathlib import Path
from typing import Any

from longcat.errors import RecipeError, UserError
from longcat.model.shape import GRID_PX
from service.wire.editing.fields import Expansion, ResolvedEdit
from service.wire.picture import Recipe
from service.wire.schema import ResolvedRequest

PICTURE_OPTIONS = ("image", "mask")
EDIT_OPTIONS = (*PICTURE_OPTIONS, "strength", "expand")
_SIDES = tuple(Expansion.model_fields)
_SHOWN_HASH = 12
"""Digits of a hash in messages."""


def edit_fields(given: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a request that options give, the pictures as bytes. Raises ``UserError``."""
    fields = {name: given[name] for name in EDIT_OPTIONS if given.get(name) is not None}
    fields |= {name: _content(name, fields[name]) for name in PICTURE_OPTIONS if name in fields}
    if "expand" in fields:
        fields["expand"] = _margins(fields["expand"])
    return fields


def _content(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(
            "picture_unreadable",
            "cannot be read: {reason}",
            remedy="give a picture file",
            field=f"--{name}",
            value=str(path),
            reason=str(error.strerror),
        ) from error


def _margins(text: str) -> dict[str, int]:
    """Read ``64`` for all sides, or ``64,0,64,0``: left, top, right, bottom."""
    parts = text.split(",")
    try:
        margins = [int(part) for part in parts * (len(_SIDES) if len(parts) == 1 else 1)]
        return dict(zip(_SIDES, margins, strict=True))
    except ValueError as error:
        raise UserError(
            "expand_option_malformed",
            "neither a number of pixels nor four",
            remedy="give one for all sides, such as 64, or left,top,right,bottom, such as 64,0,64,0",
            field="--expand",
            value=text,
        ) from error


def fields_of_recipe(recipe: Recipe, path: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of the request that a recipe repeats, with the pictures that it started from.

    Raises ``RecipeError`` for a picture that is missing, not that of the recipe, or not of it at all.
    """
    request = recipe.request
    fields = {name: getattr(request, name) for name in type(request).model_fields if name != "edit"}
    edit = request.edit
    expected = {} if edit is None else {"image": edit.image_sha256, "mask": edit.mask_sha256}
    for name in PICTURE_OPTIONS:
        if (checksum := expected.get(name)) is not None:
            fields[name] = _checked(name, checksum, given.get(name), path)
        elif given.get(name) is not None:
            raise RecipeError(
                "recipe_without_input",
                "the recipe of {path} has no {name}",
                remedy="leave it out",
                field=f"--{name}",
                value=str(given[name]),
                name=name,
                path=str(path),
            )
    if edit is not None and edit.is_reference and (request.width % GRID_PX or request.height % GRID_PX):
        del fields["width"], fields["height"]  # of the canvas, which follows from the picture
    return fields if edit is None else fields | _settings(edit)


def _settings(edit: ResolvedEdit) -> dict[str, Any]:
    return {"strength": edit.strength, "expand": edit.expand}


def _checked(name: str, checksum: str, given: Path | None, path: Path) -> bytes:
    """Return the content of a picture, if it is the one that a recipe names."""
    if given is None:
        raise RecipeError(
            "recipe_needs_input",
            "made from another picture, its {name}, with SHA-256 {checksum}",
            remedy="give that file with --{name}",
            field="--recipe",
            value=str(path),
            name=name,
            checksum=checksum,
        )
    content = _content(name, given)
    if (found := hashlib.sha256(content).hexdigest()) != checksum:
        raise RecipeError(
            "recipe_input_differs",
            "has SHA-256 {found}…, and the recipe's {name} has {expected}…",
            remedy="give the file that the picture was made from",
            field=f"--{name}",
            value=str(given),
            name=name,
            found=found[:_SHOWN_HASH],
            expected=checksum[:_SHOWN_HASH],
        )
    return content


def check_size(resolved: ResolvedRequest, recipe: Recipe, path: Path) -> None:
    """Raise ``RecipeError`` if an image would have another size than the recipe's.

    The canvas of an edit follows from the picture, and from the pixels that the server allowed.
    """
    made = recipe.request
    if (resolved.width, resolved.height) != (made.width, made.height):
        raise RecipeError(
            "recipe_size_differs",
            "made at {width} x {height} px, by a server with another --max-pixels",
            remedy="generate it at that server",
            field="--recipe",
            value=str(path),
            width=made.width,
            height=made.height,
        )
