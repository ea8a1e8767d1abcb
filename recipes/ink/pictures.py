"""Pictures of the demo dataset: Noto emoji, which the embedded model draws in colour, in black ink on white paper.

A style must transfer from trained things to others. These pictures keep the outlines that the model knows and change the
rest; pictures with other outlines train the 64 things but damage all others.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from recipes.embedded.concepts import CANVAS_PX, NOTO_PACKAGE, draw_icon, read_package
from recipes.ink.captions import data_set_caption
from recipes.ink.things import TRAINED, WIDE

WIDE_PX = 192
LUMA = (0.299, 0.587, 0.114)
"""Brightness of red, green and blue (ITU-R BT.601)."""
BLACK_UP_TO, PALEST_FROM = 150, 250
"""Brightness, 0..255, up to which ink is full, and from which it is thinnest."""
THINNEST_INK = 0.2
"""Lightest ink: a white rabbit stays visible on white paper."""


def make(downloads: Path, output: Path) -> None:
    """Write ``NNN-name.png`` and ``NNN-name.txt`` for every thing; ``downloads`` keeps the npm package."""
    downloads.mkdir(parents=True, exist_ok=True)
    output.mkdir(parents=True, exist_ok=True)
    icons = json.loads(read_package(downloads, NOTO_PACKAGE, "icons.json"))
    for index, (stem, thing) in enumerate(zip(stems(), TRAINED, strict=True)):
        width_px = WIDE_PX if thing.slug in WIDE else CANVAS_PX
        picture = draw(icons["icons"][thing.slug], icons, width_px=width_px)
        picture.save(output / f"{stem}.png", optimize=True)
        text = data_set_caption(thing, index)
        (output / f"{stem}.txt").write_text(text + "\n", encoding="utf-8")


def stems() -> Iterator[str]:
    """Return file names without their ending, in the order of ``TRAINED``."""
    return (f"{number:03}-{thing.slug}" for number, thing in enumerate(TRAINED, start=1))


def draw(icon: dict[str, Any], icons: dict[str, Any], *, width_px: int) -> Image.Image:
    """Draw one icon in greys, ``width_px`` x 128 px."""
    paper = Image.fromarray(np.full((CANVAS_PX, width_px), 255, np.uint8))
    paper.paste(Image.fromarray(printed(draw_icon(icon, icons))), ((width_px - CANVAS_PX) // 2, 0))
    return paper


def printed(sprite: np.ndarray) -> np.ndarray:
    """Print a premultiplied sprite (H, W, 4) on white paper, (H, W), both uint8: darker parts get more ink."""
    opacity = sprite[..., 3] / 255
    brightness = sprite[..., :3] @ np.array(LUMA) / np.maximum(opacity, 1e-3)
    pale = np.clip((brightness - BLACK_UP_TO) / (PALEST_FROM - BLACK_UP_TO), 0, 1)
    pale = pale * pale * (3 - 2 * pale)
    ink = opacity * (1 - (1 - THINNEST_INK) * pale)
    return np.asarray((255 * (1 - ink)).round().astype(np.uint8))
