"""The fields that a validation picture carries in its metadata: its prompt, and how it was made. No torch."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

_CHUNK = "lithograph-validation"


def scene_of(picture: Path) -> dict[str, Any]:
    """Return the fields; empty for a picture without them, and for a file that is missing or no picture."""
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
    ):  # Pillow's, json's
        return {}
    return scene if isinstance(scene, dict) else {}
