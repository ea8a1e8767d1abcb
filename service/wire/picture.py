"""Picture files, and the recipe that a PNG carries.

A PNG carries its recipe in an iTXt chunk named ``lithograph``: everything that makes the same file again, and nothing else.
It has no date and no timings, so that the same recipe gives the same bytes.
"""

import io
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, ValidationError

from longcat.errors import RecipeError
from service.wire.schema import AdapterChoice, AppliedAdapter, OutputFormat, ResolvedRequest

RECIPE_KEY = "lithograph"
MEDIA_TYPES: dict[OutputFormat, str] = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
_PNG_LEVEL = 1
"""The fastest of 9 levels: files are a tenth larger than at level 6, and made in a quarter of the time."""
_JPEG_QUALITY = 95
_WEBP_QUALITY = 95
_PREVIEW_QUALITY = 75


class ModelIdentity(BaseModel):
    """The model that made a picture, as far as it decides the pixels."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    flavour: str
    revision: str | None
    """The hub's commit; None for local files."""
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
        """Return the recipe of picture ``index`` of a request: a request for it alone, with the adapter versions in use."""
        choices = tuple(AdapterChoice(name=applied.reference, scale=applied.scale) for applied in adapters)
        alone = request.model_copy(update={"seed": request.seed + index, "num_images": 1, "adapters": choices})
        return cls(request=alone, model=model, adapters=adapters)


def encode_picture(pixels: np.ndarray, recipe: Recipe) -> bytes:
    """Encode pixels, (H, W, 3) in uint8, in the recipe's format; a PNG carries the recipe."""
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
    """Encode pixels, (h, w, 3) in uint8, as a small JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=_PREVIEW_QUALITY)
    return buffer.getvalue()


def read_recipe(path: Path) -> Recipe:
    """Read the recipe in a PNG. Raises ``RecipeError`` if there is none."""
    return recipe_in(path, name=str(path))


def recipe_in(file: Path | BinaryIO, *, name: str) -> Recipe:
    """Read the recipe in a PNG that errors call ``name``. Raises ``RecipeError`` if there is none."""
    text = _chunk_in(file, name=name)
    if not isinstance(text, str):
        raise RecipeError(
            "recipe_missing",
            "carries no recipe",
            remedy="give a PNG that Lithograph made and that no program has saved again",
            field="recipe",
            value=name,
        )
    try:
        return Recipe.model_validate_json(text)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise RecipeError(
            "recipe_format_unknown",
            "carries a recipe that this version cannot read, at {where}",
            remedy="use the version that made it",
            field="recipe",
            value=name,
            where=where,
        ) from error


def _chunk_in(file: Path | BinaryIO, *, name: str) -> object:
    """Return the text of the recipe's chunk in a PNG, None without one. Raises ``RecipeError`` for other files."""
    try:
        with Image.open(file) as image:
            if image.format != "PNG":
                raise RecipeError(
                    "recipe_not_png",
                    "is a {format} picture, and only PNG files carry a recipe",
                    remedy="give the PNG that Lithograph made",
                    field="recipe",
                    value=name,
                    format=image.format,
                )
            image.load()
            return image.info.get(RECIPE_KEY)
    except UnidentifiedImageError as error:
        raise RecipeError(
            "recipe_not_an_image",
            "is not a picture",
            remedy="give a PNG that Lithograph made",
            field="recipe",
            value=name,
        ) from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow raises all of them
        raise RecipeError(
            "recipe_not_a_picture",
            "cannot be read as a picture: {reason}",
            remedy="give a PNG that Lithograph made",
            field="recipe",
            value=name,
            reason=str(error),
        ) from error


def zip_pictures(files: Iterable[tuple[str, bytes]]) -> bytes:
    """Return a zip of named files, stored: pictures are compressed already."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files:
            archive.writestr(name, content)
    return buffer.getvalue()
