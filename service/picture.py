"""Pixels to picture files and back to the recipe they carry.

A PNG carries its recipe in an iTXt chunk named ``lithograph``: everything that makes the same file again, and nothing else
(no time, no timings), so that the same recipe gives the same bytes.
"""

import io
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, PngImagePlugin
from pydantic import BaseModel, ConfigDict, ValidationError

from longcat.errors import RecipeError
from service.schema import AdapterChoice, AppliedAdapter, OutputFormat, ResolvedRequest, Timings

RECIPE_KEY = "lithograph"
MEDIA_TYPES: dict[OutputFormat, str] = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
_PNG_LEVEL = 1
"""Of 9: a tenth larger files in a quarter of the time."""
_JPEG_QUALITY = 95
_WEBP_QUALITY = 95
_PREVIEW_QUALITY = 75


class ModelIdentity(BaseModel):
    """What drew a picture, as far as it decides the pixels."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    flavour: str
    revision: str | None
    """The hub's commit, or None for local files."""
    hash: str
    precision: str
    text_encoder_precision: str
    dtype: str


class Recipe(BaseModel):
    """Everything that makes one picture again."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    request: ResolvedRequest
    model: ModelIdentity
    adapters: tuple[AppliedAdapter, ...] = ()

    @classmethod
    def of_image(
        cls, request: ResolvedRequest, index: int, model: ModelIdentity, adapters: tuple[AppliedAdapter, ...]
    ) -> "Recipe":
        """The recipe of picture ``index`` of a request: a request for that picture alone, with the versions it had."""
        choices = tuple(AdapterChoice(name=applied.reference, scale=applied.scale) for applied in adapters)
        alone = request.model_copy(update={"seed": request.seed + index, "num_images": 1, "adapters": choices})
        return cls(request=alone, model=model, adapters=adapters)


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """A request's picture files, in the order of their seeds."""

    files: tuple[bytes, ...]
    prompt: str
    """The prompt that was drawn: the rewritten one, if it was."""
    adapters: tuple[AppliedAdapter, ...]
    timings: Timings


def encode_picture(pixels: np.ndarray, recipe: Recipe) -> bytes:
    """Pixels (H, W, 3) in uint8 to a file in the recipe's format; PNG carries the recipe."""
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    match recipe.request.output_format:
        case "png":
            chunks = PngImagePlugin.PngInfo()
            chunks.add_itxt(RECIPE_KEY, recipe.model_dump_json())
            image.save(buffer, "PNG", pnginfo=chunks, compress_level=_PNG_LEVEL)
        case "jpeg":
            image.save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
        case "webp":
            image.save(buffer, "WEBP", quality=_WEBP_QUALITY)
    return buffer.getvalue()


def encode_preview(pixels: np.ndarray) -> bytes:
    """Pixels (h, w, 3) in uint8 to a small JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=_PREVIEW_QUALITY)
    return buffer.getvalue()


def read_recipe(path: Path) -> Recipe:
    """The recipe in a PNG. Raises ``RecipeError`` if there is none."""
    try:
        with Image.open(path) as image:
            image.load()
            text = image.info.get(RECIPE_KEY)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow raises all of them
        raise RecipeError(
            f"{path} is not a picture that can be read ({error}); give a PNG that Lithograph made"
        ) from error
    if not isinstance(text, str):
        raise RecipeError(f"{path} carries no recipe; give a PNG that Lithograph made, not edited since")
    try:
        return Recipe.model_validate_json(text)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise RecipeError(f"{path} carries a recipe that this version cannot read ({where})") from error


def zip_pictures(files: Iterable[tuple[str, bytes]]) -> bytes:
    """A zip of named files, stored: pictures are compressed already."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files:
            archive.writestr(name, content)
    return buffer.getvalue()
