"""The metadata of a validation picture: its prompt and parameters. No torch."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

_CHUNK = "lithograph-validation"


def scene_of(picture: Path) -> dict[str, Any]:
    """Return the metadata; empty for a picture without it, and for a file that is missing or not a picture."""
    try:
        with Image.open(picture) as image:
            image.load()
            scene = json.loads(image.info.get(_CHUNK, "{}"))
    except (
        OSError,
        SyntaxError,
        ValueError,
        TypeError,
        RecursionError,
        Image.DecompressionBombError,
    ):  # errors of Pillow and json
        return {}
    return scene if isinstance(scene, dict) else {}
