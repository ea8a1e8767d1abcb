"""The pictures that ``lithograph generate`` and ``edit`` start from, as options give them."""

from pathlib import Path
from typing import Any

from longcat.errors import UserError
from service.wire.editing.fields import Expansion

PICTURE_OPTIONS = ("image", "mask")
EDIT_OPTIONS = (*PICTURE_OPTIONS, "strength", "expand")
_SIDES = tuple(Expansion.model_fields)


def edit_fields(given: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a request that options give, the pictures as bytes. Raises ``UserError``."""
    fields = {name: given[name] for name in EDIT_OPTIONS if given.get(name) is not None}
    fields |= {name: content_of(name, fields[name]) for name in PICTURE_OPTIONS if name in fields}
    if "expand" in fields:
        fields["expand"] = _margins(fields["expand"])
    return fields


def content_of(name: str, path: Path) -> bytes:
    """Return the content of the file that an option names. Raises ``UserError``."""
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
