"""Pairs of pictures for the tests of models that edit: pictures of soft noise, and the same with colours inverted."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.edit_model import picture

SIZES = ((128, 128), (128, 128), (128, 128), (256, 128), (256, 128))


def write_pairs(folder: Path) -> list[dict[str, Any]]:
    """Write five pairs of two shapes with captions in both languages; return their datasets as SimpleTuner has them."""
    for side in ("before", "after"):
        (folder / side).mkdir(parents=True)
    for number, size in enumerate(SIZES):
        before = picture(*size, seed=number)
        before.save(folder / "before" / f"{number}.png")
        Image.fromarray(255 - np.asarray(before)).save(folder / "after" / f"{number}.webp", lossless=True)
        caption = "invert the colours" if number % 2 else "反转颜色"
        (folder / "after" / f"{number}.txt").write_text(caption, encoding="utf-8")
    return [
        {"id": "after", "type": "local", "instance_data_dir": str(folder / "after"), "caption_strategy": "textfile",
         "resolution": "128x128,256x128", "cache_dir_vae": "/cache/vae/after", "conditioning_data": ["before"]},
        {"id": "before", "type": "local", "instance_data_dir": str(folder / "before"), "caption_strategy": None,
         "resolution": "128x128,256x128", "cache_dir_vae": "/cache/vae/before"},
    ]  # fmt: skip
