"""Uploaded pictures and masks, made ready: upright, in RGB with 8 bits, small enough for the service. No torch."""

import io
import math
import threading
from dataclasses import dataclass

from PIL import Image
from starlette.datastructures import UploadFile

from longcat.errors import DataError
from longcat.sampling.encoding.picture_file import opaque, upright
from longcat.sampling.encoding.source_picture import changes_of
from studio.generate.limits import GenerationLimits
from studio.web.errors import FormError

MOST_PIXELS = 2048 * 2048
"""Pixels of the largest image that LongCat-Image generates: larger pictures are scaled down to it."""
_WHITE = "#ffffff"
"""The background of transparent pictures, as in the service."""
_ONE_AT_A_TIME = threading.Lock()
"""A picture takes up to 8 bytes a pixel while it is decoded."""


@dataclass(frozen=True, kw_only=True)
class ReadyPicture:
    """An uploaded picture as a PNG."""

    content: bytes
    notes: tuple[str, ...]
    """Keys of what was changed and the person may not expect: ``animated``, ``transparent``, ``smaller``."""


async def read_upload(file: object, field: str, limits: GenerationLimits) -> bytes:
    """Return an uploaded file's content. Raises ``FormError`` if there is none or it is too large."""
    if not isinstance(file, UploadFile) or not file.size:
        raise FormError("edit_picture_missing", "no file", remedy="choose a picture", field=field)
    if file.size > limits.max_image_bytes:
        raise FormError(
            "edit_picture_over_bytes", "the file has {size} MB, more than the {most} MB of a picture",
            remedy="give a smaller one",
            field=field, size=f"{file.size / 1e6:.1f}", most=f"{limits.max_image_bytes / 1e6:.1f}",
        )  # fmt: skip
    return await file.read()


def ready_picture(content: bytes, limits: GenerationLimits) -> ReadyPicture:
    """Return a picture to edit. Raises ``FormError`` with the problem of a file that cannot be used.

    A PNG that is ready stays as it is, byte for byte: a picture of the gallery has the checksum that its file has.
    """
    with _ONE_AT_A_TIME:
        picture, format_ = _decoded(content, "picture", limits)
        notes = {
            "animated": getattr(picture, "is_animated", False),
            "transparent": picture.has_transparency_data,
            "smaller": picture.width * picture.height > MOST_PIXELS,
        }
        is_plain = format_ == "PNG" and picture.mode == "RGB" and not {"icc_profile", "exif"} & picture.info.keys()
        if not is_plain or any(notes.values()):
            try:
                content = _png(_fitting(opaque(picture, _WHITE)))
            except DataError as error:
                raise _form_error(error, "picture") from error
    return ReadyPicture(content=content, notes=tuple(name for name, is_so in notes.items() if is_so))


def ready_mask(content: bytes, size: tuple[int, int], limits: GenerationLimits) -> bytes | None:
    """Return a mask as a grey PNG; None if it changes nothing. Raises ``FormError`` for one of another size."""
    with _ONE_AT_A_TIME:
        try:
            mask = changes_of(_decoded(content, "mask", limits)[0])
        except DataError as error:
            raise _form_error(error, "mask") from error
        if mask.size != size:
            raise FormError(
                "edit_mask_size", "has {width} × {height} px, and the picture {across} × {down}",
                remedy="open the picture again",
                field="mask", width=mask.width, height=mask.height, across=size[0], down=size[1],
            )  # fmt: skip
        return _png(mask) if mask.getbbox() is not None else None


def _decoded(content: bytes, field: str, limits: GenerationLimits) -> tuple[Image.Image, str]:
    try:
        return upright(content, max_pixels=limits.max_image_pixels)
    except DataError as error:
        raise _form_error(error, field) from error


def _form_error(error: DataError, field: str) -> FormError:
    return FormError.of([problem.within(field=field) for problem in error.problems])


def _fitting(picture: Image.Image) -> Image.Image:
    """Return the picture with at most ``MOST_PIXELS``."""
    scale = math.sqrt(MOST_PIXELS / (picture.width * picture.height))
    if scale >= 1:
        return picture
    width, height = (max(1, math.floor(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def _png(picture: Image.Image) -> bytes:
    """Return a PNG without metadata."""
    file = io.BytesIO()
    Image.frombytes(picture.mode, picture.size, picture.tobytes()).save(file, "PNG")
    return file.getvalue()
