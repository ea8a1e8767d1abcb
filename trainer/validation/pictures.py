"""The pictures of validations in ``output_dir/validation``: ``base/``, ``step-00000500/`` and the grid of both."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from longcat.storage.atomic import write_atomically
from trainer.validation.prompts import ValidationPrompt

_CELL_PX = 192


class ValidationFolder:
    """The files of one run's validations."""

    def __init__(self, output_dir: Path) -> None:
        self.path = output_dir / "validation"
        self.grid = self.path / "grid.png"

    def base(self, prompt: ValidationPrompt) -> Path:
        """Return the path of a prompt's picture without the adapter."""
        return self.path / "base" / prompt.name

    def at_step(self, prompt: ValidationPrompt, step: int) -> Path:
        """Return the path of a prompt's picture with the adapter of a step."""
        return self.path / f"step-{step:08d}" / prompt.name

    def source(self, prompt: ValidationPrompt) -> Path:
        """Return the path of the picture that a prompt edits, at the size of its edits."""
        return self.path / "source" / prompt.name

    def write_grid(self, prompts: Sequence[ValidationPrompt]) -> None:
        """Write ``grid.png``: a row for each prompt, a column for the base and one for each step.

        Of a model that edits, the pictures that are edited are a column before them.
        """
        steps = sorted(path for path in self.path.glob("step-*") if path.is_dir())
        sources = [self.path / "source"] if any(prompt.reference for prompt in prompts) else []
        columns = [*sources, self.path / "base", *steps]
        grid = Image.new("RGB", (_CELL_PX * len(columns), _CELL_PX * max(1, len(prompts))), "white")
        for row, prompt in enumerate(prompts):
            for column, folder in enumerate(columns):
                if (folder / prompt.name).exists():
                    with Image.open(folder / prompt.name) as picture:
                        picture.thumbnail((_CELL_PX - 4, _CELL_PX - 4))
                        grid.paste(picture.convert("RGB"), (column * _CELL_PX + 2, row * _CELL_PX + 2))
        write_atomically(self.grid, _png(grid, {}))


def read_picture(path: Path) -> np.ndarray:
    """Return a picture's pixels, (H, W, 3)."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def write_picture(path: Path, pixels_HWC: np.ndarray, prompt: ValidationPrompt, step: int) -> Path:
    """Write a picture with its prompt in the file; return the path."""
    write_atomically(path, _png(Image.fromarray(pixels_HWC), prompt.facts | {"step": step}))
    return path


def _png(image: Image.Image, metadata: Mapping[str, Any]) -> bytes:
    chunks = PngImagePlugin.PngInfo()
    if metadata:
        chunks.add_itxt("lithograph-validation", json.dumps(metadata, ensure_ascii=False))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue()
