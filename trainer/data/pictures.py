"""Picture files of training data: their facts, and their pixels at the bucket's size. No torch."""

import hashlib
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from longcat.errors import DataError
from longcat.model.shape import LATENT_PX
from longcat.problem import Problem
from longcat.sampling.encoding.picture_file import decode, opaque, upright
from longcat.sampling.encoding.source_picture import SourcePicture, fitted_reference
from trainer.data.sources import open_source

if TYPE_CHECKING:
    from trainer.data.buckets import Bucket, Crop
    from trainer.data.sample import LinkedPicture, PairReference, Sample

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
        image, format_ = upright(content, max_pixels=max_pixels)
        opaque(image, "#ffffff")
    except DataError as error:
        return PictureFacts(digest=digest, problem=error.problems[0])
    return PictureFacts(digest=digest, width_px=image.width, height_px=image.height, format=format_)


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
    weights = np.asarray(image.resize(size, Image.Resampling.BOX, box=_kept(image, sample.bucket, sample.crop)))
    if sample.mask.config.conditioning_type == "segmentation":
        return np.where(weights > 0, np.uint8(255), np.uint8(0))
    return weights


def resize(image: Image.Image, sample: "Sample") -> np.ndarray:
    """Crop and resize a decoded picture to its bucket's size, (H, W, 3).

    Only the part that is kept is resized: the whole of a long strip would not fit into memory.
    """
    size = (sample.bucket.width_px, sample.bucket.height_px)
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS, box=_kept(image, sample.bucket, sample.crop)))


def read_reference(reference: "PairReference") -> SourcePicture:
    """Return the picture that an image is edited from, at the image's size. Raises ``DataError`` as ``read_pixels``."""
    image, bucket = _read(reference.file), reference.bucket
    if reference.crop is None:
        return fitted_reference(image, width_px=bucket.width_px, height_px=bucket.height_px)
    box = _kept(image, bucket, reference.crop)
    resized = image.resize((bucket.width_px, bucket.height_px), Image.Resampling.LANCZOS, box=box)
    return SourcePicture.of(np.asarray(resized))


def _kept(image: Image.Image, bucket: "Bucket", crop: "Crop") -> tuple[float, float, float, float]:
    """Return the part of a picture, or of one linked to it, that its bucket shows: left, top, right, bottom in px."""
    across, down = image.width / crop.resized[0], image.height / crop.resized[1]
    left, top = crop.box[0] * across, crop.box[1] * down
    right = min(left + bucket.width_px * across, image.width)
    bottom = min(top + bucket.height_px * down, image.height)
    return left, top, right, bottom


def _read(file: "Sample | LinkedPicture") -> Image.Image:
    """Decode the file of a sample, or one that is linked to it."""
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
