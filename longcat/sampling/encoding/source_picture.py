"""The picture that a request changes, brought to the size of its images, and its mask. No torch.

Shapes: H and W the image's size in px.
"""

import base64
import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated

import numpy as np
from PIL import Image, ImageChops
from pydantic import BeforeValidator, PlainSerializer

from longcat.model.shape import TOKEN_PX
from longcat.sampling.encoding.picture_file import opaque

Margins = tuple[int, int, int, int]
"""Pixels that are added to a picture: left, top, right, bottom."""
NO_MARGINS: Margins = (0, 0, 0, 0)


def _decode(value: object) -> object:
    return base64.b64decode(value) if isinstance(value, str) else value


def _encode(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


_Bytes = Annotated[bytes, BeforeValidator(_decode), PlainSerializer(_encode, return_type=str, when_used="json")]
"""Bytes that are base64 in JSON."""


@dataclass(frozen=True, kw_only=True)
class SourcePicture:
    """A picture and its mask at the size of the images that are made of it, in a form that crosses processes."""

    width_px: int
    height_px: int
    pixels: _Bytes = field(repr=False)
    """Rows of pixels, three bytes each."""
    mask: _Bytes | None = field(default=None, repr=False)
    """A byte for each pixel: 255 where the picture may change, 0 where it stays. None: it may change everywhere."""
    manifest: _Bytes | None = field(default=None, repr=False)
    """C2PA manifest of the picture's file, for the files that are made from it; None if there is none to keep."""

    @classmethod
    def of(cls, pixels_HW3: np.ndarray, mask_HW: np.ndarray | None = None) -> "SourcePicture":
        """Return a picture of pixels and a mask in uint8."""
        height, width, _ = pixels_HW3.shape
        mask = None if mask_HW is None else mask_HW.tobytes()
        return cls(width_px=width, height_px=height, pixels=pixels_HW3.tobytes(), mask=mask)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the picture's size and pixels, whatever its mask."""
        return hashlib.sha256(f"{self.width_px}x{self.height_px}\0".encode() + self.pixels).hexdigest()

    @property
    def pixel_array(self) -> np.ndarray:
        """The picture in uint8, read-only."""
        return np.frombuffer(self.pixels, np.uint8).reshape(self.height_px, self.width_px, 3)

    @property
    def mask_array(self) -> np.ndarray | None:
        """The mask in uint8, read-only."""
        return None if self.mask is None else np.frombuffer(self.mask, np.uint8).reshape(self.height_px, self.width_px)


def steps_kept(steps: int, strength: float) -> int:
    """Return how many of a schedule's last steps are made from a picture: ``steps * strength``, rounded up, at least one.

    Source: ``get_timesteps`` of diffusers' ``FluxImg2ImgPipeline``, which makes no image of less than one step.
    """
    return max(1, steps - int(max(steps - min(steps * strength, steps), 0)))


def fitted(
    image: Image.Image,
    mask: Image.Image | None,
    *,
    width_px: int,
    height_px: int,
    margins: Margins = NO_MARGINS,
    whole: bool = False,
) -> SourcePicture:
    """Return a picture, in mode RGB, at a size: scaled to cover it, and cut evenly where its shape is another.

    ``whole``: stretched instead. ``mask``: in mode L, changed as the picture is. ``margins``: parts of the size, around the
    picture, that are to be made. They repeat the picture's edge: its latents are not to be those of a picture with a frame.
    """
    left, top, right, bottom = margins
    inner = (width_px - left - right, height_px - top - bottom)
    around = ((top, bottom), (left, right))
    pixels = np.asarray(_covering(image, inner, Image.Resampling.LANCZOS, whole=whole))
    changes = None if mask is None else np.asarray(_covering(mask, inner, Image.Resampling.BOX, whole=whole))
    if any(margins):
        pixels = np.pad(pixels, (*around, (0, 0)), mode="edge")
        kept = np.zeros(inner[::-1], np.uint8) if changes is None else changes
        changes = np.pad(kept, around, constant_values=255)
    return SourcePicture.of(pixels, changes)


def is_canvas_of(image: Image.Image, *, width_px: int, height_px: int) -> bool:
    """Return True if a size has a picture's shape, but for one token from rounding.

    A canvas has: the published pipeline stretches the picture by that token.
    """
    width, height = image.size
    return (
        abs(height_px * width / height - width_px) <= TOKEN_PX or abs(width_px * height / width - height_px) <= TOKEN_PX
    )


def fitted_reference(image: Image.Image, *, width_px: int, height_px: int) -> SourcePicture:
    """Return the picture, in mode RGB, that an image of a size is made from: as a request without a mask has it."""
    whole = is_canvas_of(image, width_px=width_px, height_px=height_px)
    return fitted(image, None, width_px=width_px, height_px=height_px, whole=whole)


def changes_of(mask: Image.Image) -> Image.Image:
    """Return a mask in mode L, 255 where a picture may change.

    A mask with transparent parts changes those, as OpenAI's masks do; another one what is white in it. Raises ``DataError``.
    """
    if mask.has_transparency_data:
        transparency = ImageChops.invert(mask.convert("RGBA").getchannel("A"))
        if transparency.getbbox() is not None:
            return transparency
    return opaque(mask, "#ffffff").convert("L")


def _covering(image: Image.Image, size: tuple[int, int], resampling: Image.Resampling, *, whole: bool) -> Image.Image:
    """Return the middle part of an image that has the shape of a size, or all of it, at that size."""
    width, height = size
    if whole or image.size == size:
        return image if image.size == size else image.resize(size, resampling)
    scale = max(width / image.width, height / image.height)
    across, down = width / scale, height / scale
    left, top = (image.width - across) / 2, (image.height - down) / 2
    box = (max(0.0, left), max(0.0, top), min(left + across, image.width), min(top + down, image.height))
    return image.resize(size, resampling, box=box)
