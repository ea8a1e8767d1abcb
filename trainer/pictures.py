"""Picture files to pixels as a training sees them: upright, in sRGB, opaque, 8 bits, at the bucket's size. No torch.

Files come from anywhere: every way in which one can be wrong ends in a ``DataError`` with the reason, before memory does.
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
from trainer.sources import open_source

if TYPE_CHECKING:
    from trainer.inventory import Sample

ENDINGS = {
    ".png": "PNG", ".apng": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".webp": "WEBP",
    ".gif": "GIF", ".bmp": "BMP", ".dib": "BMP", ".tif": "TIFF", ".tiff": "TIFF", ".avif": "AVIF", ".jp2": "JPEG2000",
    ".j2k": "JPEG2000", ".jpf": "JPEG2000", ".jpx": "JPEG2000", ".ppm": "PPM", ".pgm": "PPM", ".pnm": "PPM",
    ".tga": "TGA",
}  # fmt: skip
"""Endings of picture files, in lower case, and the format that they promise."""
FOREIGN_ENDINGS = frozenset({
    ".heic", ".heif", ".svg", ".psd", ".psb", ".xcf", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".exr",
    ".hdr", ".jxl", ".eps", ".ai", ".ico", ".mp4", ".mov", ".webm", ".mkv", ".avi", ".zip", ".tar", ".gz", ".7z", ".rar",
    ".parquet", ".tfrecord",
})  # fmt: skip
"""Endings of files that hold pictures in a form that is not read here."""

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA")
"""What content may be. Not all of Pillow's: some of its readers start other programs."""
_SAME_FORMAT = {"MPO": "JPEG", "DIB": "BMP"}
_MOST_BYTES_A_PIXEL = 16
"""No picture of so many pixels needs a longer file."""
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""EXIF's orientations, and what undoes them."""
_OPENING = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class PictureFacts:
    """What a scan learns from a picture's content."""

    digest: str
    """SHA-256 of the file, in hex."""
    width_px: int = 0
    """The right way up."""
    height_px: int = 0
    format: str = ""
    """What it is, whatever its ending says."""
    reason: str = ""
    """Why it cannot be used; empty if it can."""


def inspect(content: bytes, *, max_pixels: int) -> PictureFacts:
    """Decode a picture once, wholly, to know that it can be."""
    digest = hashlib.sha256(content).hexdigest()
    try:
        image, format_ = _upright(content, max_pixels=max_pixels)
        _opaque(image, "#ffffff")
    except DataError as error:
        return PictureFacts(digest=digest, reason=str(error))
    return PictureFacts(digest=digest, width_px=image.width, height_px=image.height, format=format_)


def decode(content: bytes, *, max_pixels: int, background: str = "#ffffff") -> Image.Image:
    """The first frame, the right way up, in mode RGB. Raises ``DataError`` with the reason if it cannot be."""
    return _opaque(_upright(content, max_pixels=max_pixels)[0], background)


def read_pixels(sample: "Sample") -> np.ndarray:
    """A sample's pixels (H, W, 3) in uint8 at its bucket's size.

    Raises ``DataError`` if the file is not what it was when it was scanned: a cache of it would be wrong.
    """
    what = f"dataset {sample.dataset!r}: {sample.key}"
    try:
        content = open_source(sample.config).read(sample.key)
    except DataError as error:
        raise DataError(f"{what} {error}; it was there when the data was scanned: start again") from error
    if hashlib.sha256(content).hexdigest() != sample.digest:
        raise DataError(f"{what} has changed since the data was scanned; start again")
    image = decode(content, max_pixels=sample.width_px * sample.height_px, background=sample.config.alpha_colour)
    return resize(image, sample)


def resize(image: Image.Image, sample: "Sample") -> np.ndarray:
    """The part that the sample keeps of its decoded picture, (H, W, 3) at its bucket's size.

    Only that part is resized: the whole of a long strip would not fit into memory.
    """
    bucket, crop = sample.bucket, sample.crop
    across, down = image.width / crop.resized[0], image.height / crop.resized[1]
    left, top = crop.box[0] * across, crop.box[1] * down
    right = min(left + bucket.width_px * across, image.width)
    bottom = min(top + bucket.height_px * down, image.height)
    size = (bucket.width_px, bucket.height_px)
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS, box=(left, top, right, bottom)))


def is_promised(key: str, format_: str) -> bool:
    """Whether a file's ending says what its content is."""
    return ENDINGS.get(PurePosixPath(key).suffix.lower()) == format_


def _upright(content: bytes, *, max_pixels: int) -> tuple[Image.Image, str]:
    """The first frame, turned as EXIF says, and its format."""
    if not content:
        raise DataError("is empty: 0 bytes")
    if len(content) > max_pixels * _MOST_BYTES_A_PIXEL:
        raise DataError(f"is too large: {len(content):,} bytes for at most {max_pixels:,} pixels")
    image = _opened(content)
    format_ = _SAME_FORMAT.get(str(image.format), str(image.format))
    if image.width * image.height > max_pixels:
        raise DataError(
            f"claims {image.width} x {image.height} pixels, more than {max_pixels:,}: a decompression bomb, or raise "
            "max_image_pixels"
        )
    try:
        image.load()
    except Exception as error:  # Pillow's readers raise whatever a broken file makes them run into
        raise DataError(f"is damaged or cut short ({format_}): {_said(error)}") from error
    turn = _UPRIGHT.get(_orientation(image))
    return (image if turn is None else image.transpose(turn)), format_


def _opened(content: bytes) -> Image.Image:
    """The picture's header read. Pillow's own limit of pixels is set aside: ours may be higher, and is held next."""
    with _OPENING:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(io.BytesIO(content), formats=_FORMATS)
        except UnidentifiedImageError as error:
            raise DataError(f"is no picture that can be read: it starts with {content[:12]!r}") from error
        except Exception as error:  # as above
            raise DataError(f"is damaged: {_said(error)}") from error
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation; a block too broken to be read says nothing, and its picture is as good as any."""
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # as above
        return 1


def _opaque(image: Image.Image, background: str) -> Image.Image:
    """Mode RGB in sRGB, laid on the background where it is transparent."""
    try:
        if image.mode.startswith("I") or image.mode == "F":
            image = _eight_bits(image)
        if not image.has_transparency_data:
            return _in_srgb(image)
        profile = image.info.get("icc_profile")
        seen = image.convert("RGBA")
        alpha = seen.getchannel("A")
        colours = seen.convert("RGB")
        colours.info["icc_profile"] = profile if image.mode != "LA" else None
        laid = Image.new("RGB", image.size, background)
        laid.paste(_in_srgb(colours), mask=alpha)
        return laid
    except DataError:
        raise
    except Exception as error:  # as above
        raise DataError(f"of mode {image.mode} cannot be made RGB: {_said(error)}") from error


def _in_srgb(image: Image.Image) -> Image.Image:
    """Mode RGB, by the embedded profile if there is one that fits."""
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
        raise ImageCms.PyCMSError("no picture came of the conversion")
    return converted


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits, or floats, as 8 bits over the same range."""
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise DataError("has pixels that are not numbers")
    most = values.max()
    if image.mode == "F" and most <= 1:
        whole = 1.0
    elif image.mode == "F" and most <= 255:
        whole = 255.0
    else:
        whole = 65535.0 if most <= 65535 else 2.0**31 - 1
    return Image.fromarray(np.clip(values * (255 / whole) + 0.5, 0, 255).astype(np.uint8))


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
