"""Picture files, and the recipe that they carry.

A file carries its recipe, everything that makes the same file again and nothing else: a PNG in an iTXt chunk named
``lithograph``, a JPEG or WebP in its XMP packet (``service.wire.provenance``), where the label of generated pictures is.
It has no date and no timings, so that the same recipe gives the same bytes, but for a signature.
"""

import contextlib
import io
import os
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict, ValidationError

from longcat.errors import RecipeError
from longcat.problem import reason_of
from longcat.storage.regular import open_regular
from service.wire.provenance.mark import VisibleMark
from service.wire.provenance.packet import EDITED_SOURCE, GENERATED_SOURCE, content_id_of, properties_of, xmp_packet
from service.wire.provenance.settings import ProvenanceConfig
from service.wire.provenance.signing import Ingredient
from service.wire.schema import AdapterChoice, AppliedAdapter, OutputFormat, ResolvedRequest

RECIPE_KEY = "lithograph"
XMP_KEY = "XML:com.adobe.xmp"
"""Keyword of a PNG's chunk for XMP (Adobe, XMP Specification Part 3, section 1.1.5)."""
_FORMATS = ("PNG", "JPEG", "WEBP")
_LARGEST_FILE_BYTES = 64 * 2**20
"""Largest file that is read, several times that of the largest picture: Pillow keeps each of its chunks in memory."""
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
    producer: str | None = None
    """Producer in the file's label; None for a file without one."""
    mark: VisibleMark | None = None
    """Visible mark on the picture; None for a picture without one."""

    def as_json(self) -> str:
        """Return the recipe as files carry it, without a producer, a mark or an edit if there is none."""
        absent: dict[str, bool | set[str]] = {
            name: True for name, value in (("producer", self.producer), ("mark", self.mark)) if value is None
        }
        if self.request.edit is None:
            absent["request"] = {"edit"}
        return self.model_dump_json(exclude=absent)

    @property
    def source_type(self) -> str:
        """IPTC's digital source type of the picture."""
        return GENERATED_SOURCE if self.request.edit is None else EDITED_SOURCE

    @property
    def ingredients(self) -> tuple[Ingredient, ...]:
        """Return what made the picture, for its signature: the model, the adapters, and the picture that was changed."""
        model, edit = self.model, self.request.edit
        name = PurePath(model.flavour).name or model.flavour  # without the directories of a local model
        used = [Ingredient(kind="model", name=name, version=model.revision, sha256=model.hash)]
        used += [
            Ingredient(kind="adapter", name=adapter.name, version=str(adapter.version), sha256=adapter.sha256)
            for adapter in self.adapters
        ]
        if edit is not None:
            used.append(Ingredient.of_picture(edit.image_sha256))
        return tuple(used)

    @classmethod
    def of_image(
        cls,
        request: ResolvedRequest,
        index: int,
        model: ModelIdentity,
        adapters: tuple[AppliedAdapter, ...],
        *,
        producer: str | None = None,
        mark: VisibleMark | None = None,
    ) -> "Recipe":
        """Return the recipe of picture ``index`` of a request: a request for it alone, with the adapter versions in use."""
        choices = tuple(AdapterChoice(name=applied.reference, scale=applied.scale) for applied in adapters)
        alone = request.model_copy(update={"seed": request.seed + index, "num_images": 1, "adapters": choices})
        return cls(request=alone, model=model, adapters=adapters, producer=producer, mark=mark)


class PictureWriter:
    """Makes the files of a model's pictures."""

    def __init__(self, model: ModelIdentity, provenance: ProvenanceConfig) -> None:
        """Read the signing certificate and the font of a mark, if there are any. Raises ``ConfigError``."""
        self.model = model
        self._provenance = provenance
        self._signer = provenance.signer()
        self._painter = provenance.painter()

    def file_of(
        self,
        pixels: np.ndarray,
        request: ResolvedRequest,
        index: int,
        adapters: tuple[AppliedAdapter, ...],
        *,
        parent: bytes | None = None,
    ) -> bytes:
        """Return the file of picture ``index`` of a request.

        ``pixels``: (H, W, 3) in uint8. ``parent``: C2PA manifest of the picture that was changed, from ``parent_of``.
        """
        mark = None if self._painter is None else self._painter.mark
        recipe = Recipe.of_image(request, index, self.model, adapters, producer=self._provenance.producer, mark=mark)
        if self._painter is not None:
            pixels = self._painter.painted(pixels)
        content = encode_picture(pixels, recipe, with_recipe=self._provenance.picture_recipe == "on")
        if self._signer is None:
            return content
        return self._signer.sign(content, MEDIA_TYPES[request.output_format], recipe.ingredients, parent)


def encode_picture(pixels: np.ndarray, recipe: Recipe, *, with_recipe: bool = True) -> bytes:
    """Encode pixels, (H, W, 3) in uint8, in the recipe's format, with its label; ``with_recipe``: the file carries it."""
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    text = recipe.as_json()
    kind = recipe.request.output_format
    in_packet = text if with_recipe and kind != "png" else None
    packet = xmp_packet(
        source=recipe.source_type, producer=recipe.producer, recipe=in_packet, content_id=content_id_of(text)
    )
    match kind:
        case "png":
            chunks = PngImagePlugin.PngInfo()
            if packet:
                chunks.add_itxt(XMP_KEY, packet.decode())
            if with_recipe:
                chunks.add_itxt(RECIPE_KEY, text)
            image.save(buffer, "PNG", pnginfo=chunks, compress_level=_PNG_LEVEL)
        case "jpeg":
            image.save(buffer, "JPEG", quality=_JPEG_QUALITY, subsampling=0, xmp=packet)
        case "webp":
            image.save(buffer, "WEBP", quality=_WEBP_QUALITY, xmp=packet)
    return buffer.getvalue()


def encode_preview(pixels: np.ndarray) -> bytes:
    """Encode pixels, (h, w, 3) in uint8, as a small JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=_PREVIEW_QUALITY)
    return buffer.getvalue()


def read_recipe(path: Path) -> Recipe:
    """Read the recipe in a picture file. Raises ``RecipeError`` if there is none."""
    return recipe_in(path, name=str(path))


def recipe_in(file: Path | BinaryIO, *, name: str) -> Recipe:
    """Read the recipe in a picture file that errors call ``name``. Raises ``RecipeError`` if there is none."""
    return recipe_of(metadata_in(file, name=name), name=name)


def recipe_of(metadata: Mapping[str, str], *, name: str) -> Recipe:
    """Return the recipe in what ``metadata_in`` returned. Raises ``RecipeError`` if there is none."""
    text = metadata.get("lithograph:recipe")
    if text is None:
        raise RecipeError(
            "recipe_missing",
            "carries no recipe",
            remedy="give a picture that Lithograph made with its recipe and that no program has saved again",
            field="recipe",
            value=name,
        )
    try:
        return Recipe.model_validate_json(text)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"]) or "JSON"
        raise RecipeError(
            "recipe_format_unknown",
            "carries a recipe that this version cannot read, at {where}",
            remedy="use the version that made it",
            field="recipe",
            value=name,
            where=where,
        ) from error


def metadata_in(file: Path | BinaryIO, *, name: str) -> dict[str, str]:
    """Return what a picture file says about itself unsigned, by property; the recipe as ``lithograph:recipe``.

    Raises ``RecipeError`` for a file that is no picture or too large, and for one of a format that carries nothing.
    """
    try:
        with contextlib.ExitStack() as stack:
            stream = stack.enter_context(open_regular(file)) if isinstance(file, Path) else file
            if stream.seek(0, os.SEEK_END) > _LARGEST_FILE_BYTES:
                raise _no_picture(name, f"it has more than {_LARGEST_FILE_BYTES} bytes")
            stream.seek(0)
            packet, found = _packet_and_recipe(stream, name=name)
    except UnidentifiedImageError as error:
        raise RecipeError(
            "recipe_not_an_image",
            "is not a picture",
            remedy="give a picture that Lithograph made",
            field="recipe",
            value=name,
        ) from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow raises all of them
        raise _no_picture(name, reason_of(error)) from error
    try:
        return properties_of(packet) | found if packet else found
    except ValueError as error:
        raise RecipeError(
            "recipe_metadata_invalid",
            "has metadata (XMP) that cannot be read: {reason}",
            remedy="give a picture that Lithograph made and that no program has saved again",
            field="recipe",
            value=name,
            reason=str(error),
        ) from error


def _packet_and_recipe(stream: BinaryIO, *, name: str) -> tuple[bytes, dict[str, str]]:
    """Return a picture's XMP packet, and the recipe that a PNG has outside it. Raises Pillow's errors."""
    with Image.open(stream) as image:
        if image.format not in _FORMATS:
            raise RecipeError(
                "recipe_not_in_format",
                "is a {format} picture, and only PNG, JPEG and WebP files carry a recipe",
                remedy="give the file that Lithograph made",
                field="recipe",
                value=name,
                format=image.format,
            )
        image.load()
        packet = image.info.get(XMP_KEY if image.format == "PNG" else "xmp") or b""
        chunk = image.info.get(RECIPE_KEY) if image.format == "PNG" else None
    found = {"lithograph:recipe": str(chunk)} if isinstance(chunk, str) else {}
    return packet.encode() if isinstance(packet, str) else packet, found


def _no_picture(name: str, reason: str) -> RecipeError:
    return RecipeError(
        "recipe_not_a_picture",
        "cannot be read as a picture: {reason}",
        remedy="give a picture that Lithograph made",
        field="recipe",
        value=name,
        reason=reason,
    )


def zip_pictures(files: Iterable[tuple[str, bytes]]) -> bytes:
    """Return a zip of named files, stored: pictures are compressed already."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files:
            archive.writestr(name, content)
    return buffer.getvalue()
