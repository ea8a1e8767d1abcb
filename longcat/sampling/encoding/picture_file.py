"""Decoding of picture files: upright, in sRGB, opaque, 8 bits. No torch.

The files are not trusted: every defect raises a ``DataError`` with its problem, before memory runs out. The trainer reads
datasets, and the service the pictures of requests, through this module.
"""

import io
import threading
from typing import Any

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from longcat.errors import DataError

MAX_PIXELS = 200_000_000
"""Pixels from which on a picture is taken for a decompression bomb."""

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA")
"""Formats that are decoded. Pillow has more, but some of its readers start other programs."""
_SAME_FORMAT = {"MPO": "JPEG", "DIB": "BMP"}
_MOST_BYTES_A_PIXEL = 16
"""Size limit of a file, in bytes per pixel that is allowed: no picture needs more."""
_ORIENTATION_TAG = 0x0112
_TEXT_SHOWN = 16
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""The transposition that undoes each EXIF orientation."""
_OPENING = threading.Lock()


def decode(content: bytes, *, max_pixels: int, background: str = "#ffffff") -> Image.Image:
    """Return the first frame, upright, in mode RGB. Raises ``DataError`` if the picture cannot be decoded."""
    return opaque(upright(content, max_pixels=max_pixels)[0], background)


def upright(content: bytes, *, max_pixels: int) -> tuple[Image.Image, str]:
    """Return the first frame, turned upright by its EXIF orientation, and its format."""
    if not content:
        raise DataError("picture_empty", "empty: 0 bytes")
    if len(content) > max_pixels * _MOST_BYTES_A_PIXEL:
        raise DataError(
            "picture_file_too_large",
            "{size} bytes, more than a picture of {max_pixels} pixels needs",
            size=f"{len(content):,}",
            max_pixels=f"{max_pixels:,}",
        )
    image = _opened(content)
    format_ = _SAME_FORMAT.get(str(image.format), str(image.format))
    if image.width * image.height > max_pixels:
        raise DataError(
            "picture_has_too_many_pixels",
            "claims {width} x {height} pixels, more than {max_pixels}: possibly a decompression bomb",
            remedy="raise max_image_pixels if it is not",
            width=image.width,
            height=image.height,
            max_pixels=f"{max_pixels:,}",
        )
    try:
        image.load()
    except Exception as error:  # Pillow's readers raise any exception for a broken file
        raise DataError(
            "picture_damaged", "damaged or cut short ({format}): {cause}", format=format_, cause=_message(error)
        ) from error
    turn = _UPRIGHT.get(_orientation(image))
    return (image if turn is None else image.transpose(turn)), format_


def _opened(content: bytes) -> Image.Image:
    """Read the picture's header. Pillow's own limit of pixels is lifted: ours may be higher, and is checked next."""
    with _OPENING:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(io.BytesIO(content), formats=_FORMATS)
        except UnidentifiedImageError as error:
            raise _unidentified(content) from error
        except Exception as error:  # likewise, any exception for a broken file
            raise DataError("picture_header_damaged", "damaged: {cause}", cause=_message(error)) from error
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _unidentified(content: bytes) -> DataError:
    """Return the problem of content that Pillow opens as none of the formats."""
    if format_ := next((name for name in _FORMATS if _begins_as(content, name)), None):
        return DataError("picture_header_cut", "a {format} file whose header is damaged or cut short", format=format_)
    start = content[:_TEXT_SHOWN].decode("utf-8", "replace").strip()
    if start.isprintable() and "\ufffd" not in start:
        return DataError("picture_is_text", "text, not a picture; it starts with {start}", start=start)
    return DataError(
        "picture_format_unknown", "not a picture of a supported format", remedy="convert it to PNG or JPEG"
    )


def _begins_as(content: bytes, format_: str) -> bool:
    """Return True if Pillow takes the first bytes for those of a format."""
    accept = Image.OPEN[format_][1]
    return accept is not None and accept(content[:16].ljust(16, b"\0")) is True


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, or 1 (upright) if the EXIF block is damaged: its picture can still be used."""
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # likewise, any exception for a broken file
        return 1


def opaque(image: Image.Image, background: str) -> Image.Image:
    """Convert to mode RGB in sRGB, composed on the background where it is transparent."""
    try:
        if image.mode.startswith("I") or image.mode == "F":
            image = _eight_bits(image)
        if not image.has_transparency_data:
            return _in_srgb(image)
        profile = image.info.get("icc_profile")
        rgba = image.convert("RGBA")
        alpha = rgba.getchannel("A")
        colours = rgba.convert("RGB")
        colours.info["icc_profile"] = profile if image.mode != "LA" else None
        composed = Image.new("RGB", image.size, background)
        composed.paste(_in_srgb(colours), mask=alpha)
        return composed
    except DataError:
        raise
    except Exception as error:  # likewise, any exception for a broken file
        raise DataError(
            "picture_mode_unsupported",
            "mode {mode} cannot be converted to RGB: {cause}",
            mode=image.mode,
            cause=_message(error),
        ) from error


def _in_srgb(image: Image.Image) -> Image.Image:
    """Convert to mode RGB, by the embedded profile if there is one that fits."""
    if image.mode in ("1", "P"):
        image = image.convert("RGB")
    profile = image.info.get("icc_profile")
    try:
        if profile:
            return _converted(image, ImageCms.ImageCmsProfile(io.BytesIO(profile)))
        if image.mode == "LAB":
            return _converted(image, ImageCms.createProfile("LAB"))
    except (ImageCms.PyCMSError, OSError, ValueError):  # a profile that is damaged, or for other channels
        if image.mode == "LAB":
            raise
    return image.convert("RGB")


def _converted(image: Image.Image, profile: Any) -> Image.Image:
    converted = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    if converted is None:
        raise ImageCms.PyCMSError("the conversion returned no picture")
    return converted


def _eight_bits(image: Image.Image) -> Image.Image:
    """Convert grey of 16 or 32 bits, or floats, to 8 bits over the same range."""
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise DataError("picture_not_finite", "has pixels that are not finite numbers")
    most = values.max()
    if image.mode == "F" and most <= 1:
        whole = 1.0
    elif (image.mode == "F" and most <= 255) or (image.mode == "I" and most <= 255):
        whole = 255.0
    else:
        whole = 65535.0 if most <= 65535 else 2.0**31 - 1
    return Image.fromarray(np.clip(values * (255 / whole) + 0.5, 0, 255).astype(np.uint8))


def _message(error: Exception) -> str:
    return str(error) or type(error).__name__
