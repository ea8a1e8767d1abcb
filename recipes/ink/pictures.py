"""Pictures: Fluent emoji 'High Contrast', drawn as black ink on white paper."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from recipes.embedded.concepts import CANVAS_PX, _draw, _read_package
from recipes.ink.captions import data_set_caption
from recipes.ink.things import TRAINED, WIDE

PACKAGE = "@iconify-json/fluent-emoji-high-contrast@1.2.6"
WIDE_PX = 192


def make(downloads: Path, output: Path) -> None:
    """Write ``NNN-name.png`` and ``NNN-name.txt`` for every thing; ``downloads`` keeps the npm package."""
    downloads.mkdir(parents=True, exist_ok=True)
    output.mkdir(parents=True, exist_ok=True)
    icons = json.loads(_read_package(downloads, PACKAGE, "icons.json"))
    for index, (stem, thing) in enumerate(zip(stems(), TRAINED, strict=True)):
        width_px = WIDE_PX if thing.slug in WIDE else CANVAS_PX
        picture = draw(icons["icons"][thing.slug], icons, width_px=width_px)
        picture.save(output / f"{stem}.png", optimize=True)
        text = data_set_caption(thing, index)
        (output / f"{stem}.txt").write_text(text + "\n", encoding="utf-8")


def stems() -> Iterator[str]:
    """File names without their ending, in the order of ``TRAINED``."""
    return (f"{number:03}-{thing.slug}" for number, thing in enumerate(TRAINED, start=1))


def draw(icon: dict[str, Any], icons: dict[str, Any], *, width_px: int) -> Image.Image:
    """One icon in greys, ``width_px`` x 128 px: its ink is its opacity, whatever its colour."""
    ink = Image.fromarray(255 - _draw(icon, icons)[..., 3])
    paper = Image.fromarray(np.full((CANVAS_PX, width_px), 255, np.uint8))
    paper.paste(ink, ((width_px - CANVAS_PX) // 2, 0))
    return paper
