"""Decoding of picture files for training: upright, in sRGB, opaque, 8 bits, at the bucket's size. No torch.

The files are not trusted: every defect raises a ``DataError`` with its problem, before memory runs out.
"""

import hashlib
import io
import threading
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from longcat.errors import DataError
from longcat.model.shape import LATENT_PX
from longcat.problem import Problem
from trainer.data.sources import open_source

if TYPE_CHECKING:
    from trainer.data.sample import Mask, Sample

ENDINGS = {
    ".png": "PNG", ".apng": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".webp": "WEBP",
    ".gif": "GIF", ".bmp": "BMP", ".dib": "BMP", ".tif": "TIFF", ".tiff": "TIFF", ".avif": "AVIF", ".jp2": "JPEG2000",
    ".j2k": "JPEG2000", ".jpf": "JPEG2000", ".jpx": "JPEG2000", ".ppm": "PPM", ".pgm": "PPM", ".pnm": "PPM",
    ".tga": "TGA",
}  # fmt: skip
"""Endings of picture files, in lower case, and the format that each stands for."""
FOREIGN_ENDINGS = frozenset({
    ".heic", ".heif", ".svg", ".psd", ".psb", ".xcf", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".exr",
    ".hdr", ".jxl", ".eps", ".ai", ".ico", ".mp4", ".mov", ".webm", ".mkv", ".avi", ".zip", ".tar", ".gz", ".7z", ".rar",
    ".parquet", ".tfrecord",
})  # fmt: skip
"""Endings of files that hold pictures in a form that is not supported."""

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


@dataclass(frozen=True, kw_only=True)
class PictureFacts:
    """The result of inspecting a picture's content."""

    digest: str
    """SHA-256 of the file, in hex."""
    width_px: int = 0
    """Width of the upright picture."""
    height_px: int = 0
    format: str = ""
    """Format of the content, whatever the file's ending."""
    problem: Problem | None = None
    """The reason why it cannot be used; None if it can."""


def inspect(content: bytes, *, max_pixels: int) -> PictureFacts:
    """Decode a picture once, completely, and return its facts."""
    digest = hashlib.sha256(content).hexdigest()
    try:
        image, format_ = _upright(content, max_pixels=max_pixels)
        _opaque(image, "#ffffff")
    except DataError as error:
        return PictureFacts(digest=digest, problem=error.problems[0])
    return PictureFacts(digest=digest, width_px=image.width, height_px=image.height, format=format_)


def decode(content: bytes, *, max_pixels: int, background: str = "#ffffff") -> Image.Image:
    """Return the first frame, upright, in mode RGB. Raises ``DataError`` if the picture cannot be decoded."""
    return _opaque(_upright(content, max_pixels=max_pixels)[0], background)


def read_pixels(sample: "Sample") -> np.ndarray:
    """Return a sample's pixels (H, W, 3) in uint8 at its bucket's size.

    Raises ``DataError`` if the file has changed since the scan: its cached latents would be wrong.
    """
    return resize(_read(sample), sample)


def read_mask(sample: "Sample") -> np.ndarray:
    """Return the weights of a sample's latents (H/8, W/8) in uint8, 255 for 1: the part of the mask that the bucket shows.

    A latent's weight is the mean over its pixels. Raises ``DataError`` if the file has changed since the scan.
    """
    assert sample.mask is not None
    image = _read(sample.mask).convert("L")
    size = (sample.bucket.width_px // LATENT_PX, sample.bucket.height_px // LATENT_PX)
    weights = np.asarray(image.resize(size, Image.Resampling.BOX, box=_kept(image, sample)))
    if sample.mask.config.conditioning_type == "segmentation":
        return np.where(weights > 0, np.uint8(255), np.uint8(0))
    return weights


def resize(image: Image.Image, sample: "Sample") -> np.ndarray:
    """Crop and resize a decoded picture to its bucket's size, (H, W, 3).

    Only the part that is kept is resized: the whole of a long strip would not fit into memory.
    """
    size = (sample.bucket.width_px, sample.bucket.height_px)
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS, box=_kept(image, sample)))


def _kept(image: Image.Image, sample: "Sample") -> tuple[float, float, float, float]:
    """Return the part of a sample's picture, or of its mask, that its bucket shows: left, top, right, bottom in px."""
    bucket, crop = sample.bucket, sample.crop
    across, down = image.width / crop.resized[0], image.height / crop.resized[1]
    left, top = crop.box[0] * across, crop.box[1] * down
    right = min(left + bucket.width_px * across, image.width)
    bottom = min(top + bucket.height_px * down, image.height)
    return left, top, right, bottom


def _read(file: "Sample | Mask") -> Image.Image:
    """Decode the file of a sample or mask."""
    try:
        content = open_source(file.config).read(file.key)
    except DataError as error:
        raise DataError(
            "picture_gone",
            "readable when dataset {dataset!r} was scanned, and no longer: {cause}",
            remedy="start again",
            field="file",
            value=file.key,
            dataset=file.dataset,
            cause=error.problems[0],
        ) from error
    if hashlib.sha256(content).hexdigest() != file.digest:
        raise DataError(
            "picture_changed",
            "changed since dataset {dataset!r} was scanned",
            remedy="start again",
            field="file",
            value=file.key,
            dataset=file.dataset,
        )
    return decode(content, max_pixels=file.width_px * file.height_px, background=file.config.alpha_colour)


def is_promised(key: str, format_: str) -> bool:
    """Return True if a file's ending stands for the format of its content."""
    return ENDINGS.get(PurePosixPath(key).suffix.lower()) == format_


def _upright(content: bytes, *, max_pixels: int) -> tuple[Image.Image, str]:
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


def _opaque(image: Image.Image, background: str) -> Image.Image:
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
