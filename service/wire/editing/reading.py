"""Reading the pictures of a request: once, outside the event loop, before the request is queued. No torch."""

import hashlib
import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated

from PIL import Image
from pydantic import Field

from longcat.errors import DataError, UserError
from longcat.model.shape import GRID_PX, MOST_RATIO, canvas_within, is_oblong
from longcat.options import Configuration
from longcat.problem import Problem
from longcat.sampling.encoding.picture_file import opaque, upright
from longcat.sampling.encoding.source_picture import SourcePicture, changes_of, fitted, is_canvas_of
from service.wire.editing.fields import EDIT_STRENGTH, IMG2IMG_STRENGTH, INPAINT_STRENGTH, EditFields, ResolvedEdit

_WHITE = "#ffffff"
"""The background of transparent pictures, as in training."""


class PictureLimits(Configuration):
    """The limits of the pictures that a request gives."""

    max_image_bytes: Annotated[int, Field(ge=1024, le=256 * 2**20)] = 16 * 2**20
    """Largest picture and mask of a request, together, as files; max_body_bytes is for the rest of its body."""
    max_image_pixels: Annotated[int, Field(ge=GRID_PX**2)] = 32_000_000
    """Most pixels of a picture that a request gives, checked before it is decoded: it takes up to 8 bytes for each."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadPictures:
    """The pictures of a request."""

    image: Image.Image
    """In mode RGB."""
    mask: Image.Image | None
    """In mode L, 255 for what is changed."""
    image_sha256: str
    mask_sha256: str | None

    def size(self, *, default_px: int, max_pixels: int) -> tuple[int, int]:
        """Return the width and height that a request has which leaves them out: multiples of 64 px.

        They are the picture's own, or for a picture over ``max_pixels`` its shape in as many pixels as the model's default.
        """
        width, height = self.image.size
        own = max(GRID_PX, _on_grid(width)), max(GRID_PX, _on_grid(height))
        if own[0] * own[1] <= max_pixels:
            return own
        ratio = min(max(width / height, GRID_PX / default_px), default_px / GRID_PX)
        across = max(GRID_PX, _on_grid(default_px * math.sqrt(ratio)))
        down = max(GRID_PX, _on_grid(default_px / math.sqrt(ratio)))
        while across * down > max_pixels:  # both rounded up
            across, down = (across - GRID_PX, down) if across >= down else (across, down - GRID_PX)
        return across, down

    def canvas(self, *, area_px: int, max_pixels: int) -> tuple[int, int]:
        """Return the width and height at which a model edits the picture, unless the request has others.

        Raises ``UserError`` for a picture that is too oblong.
        """
        width, height = self.image.size
        if is_oblong(width_px=width, height_px=height):
            raise UserError(
                "picture_too_oblong",
                "has {width} x {height} px, and one side of an edited picture is at most {ratio} times the other",
                remedy="cut it, or give width and height",
                field="image",
                width=width,
                height=height,
                ratio=MOST_RATIO,
            )
        return canvas_within(width_px=width, height_px=height, area_px=area_px, max_pixels=max_pixels)

    def resolved(self, request: EditFields, *, is_reference: bool = False) -> ResolvedEdit:
        """Return the resolved fields of the request. ``is_reference``: the model edits."""
        has_area = self.mask is not None or request.expand is not None
        default = EDIT_STRENGTH if is_reference else INPAINT_STRENGTH if has_area else IMG2IMG_STRENGTH
        return ResolvedEdit(
            image_sha256=self.image_sha256,
            mask_sha256=self.mask_sha256,
            strength=default if request.strength is None else request.strength,
            expand=request.expand,
            is_reference=is_reference,
        )

    def at(self, *, width_px: int, height_px: int, edit: ResolvedEdit) -> SourcePicture:
        """Return the pictures at the size of a request's images. Raises ``UserError`` if its mask changes nothing."""
        left, top, right, bottom = edit.margins
        source = fitted(
            self.image,
            self.mask,
            width_px=width_px,
            height_px=height_px,
            margins=edit.margins,
            whole=edit.is_reference
            and is_canvas_of(self.image, width_px=width_px - left - right, height_px=height_px - top - bottom),
        )
        if source.mask is not None and not source.mask.strip(b"\0"):
            raise UserError(
                "mask_changes_nothing",
                "changes no part of the image",
                remedy="make white, or transparent, what is to change",
                field="mask",
            )
        return source


def read_pictures(request: EditFields, limits: PictureLimits) -> ReadPictures | None:
    """Decode a request's pictures; None for a request without. Raises ``UserError`` with the problem of each."""
    if problems := list(_problems_without_image(request)):
        raise UserError.of(problems)
    if request.image is None:
        return None
    size = len(request.image) + len(request.mask or b"")
    if size > limits.max_image_bytes:
        raise UserError(
            "image_bytes_exceeded",
            "image and mask have {size} bytes, more than the {max_bytes} that this server takes",
            remedy="send a smaller picture, or raise --max-image-bytes",
            field="image",
            size=size,
            max_bytes=limits.max_image_bytes,
        )
    image = _decoded("image", request.image, lambda picture: opaque(picture, _WHITE), limits)
    mask = None if request.mask is None else _decoded("mask", request.mask, changes_of, limits)
    if mask is not None and not _has_shape(mask, image):
        raise UserError(
            "mask_shape_differs",
            "has {mask_width} x {mask_height} px, and the image {width} x {height}",
            remedy="give a mask of the image's size or shape",
            field="mask",
            mask_width=mask.width,
            mask_height=mask.height,
            width=image.width,
            height=image.height,
        )
    return ReadPictures(
        image=image,
        mask=mask,
        image_sha256=hashlib.sha256(request.image).hexdigest(),
        mask_sha256=None if request.mask is None else hashlib.sha256(request.mask).hexdigest(),
    )


def blank_file(side_px: int) -> bytes:
    """Return a grey picture of so many px a side, as a file: for requests that need a picture, whatever is on it."""
    file = io.BytesIO()
    Image.new("RGB", (side_px, side_px), "grey").save(file, "PNG")
    return file.getvalue()


def _decoded(
    field: str, content: bytes, convert: Callable[[Image.Image], Image.Image], limits: PictureLimits
) -> Image.Image:
    try:
        return convert(upright(content, max_pixels=limits.max_image_pixels)[0])
    except DataError as error:
        raise UserError.of([problem.within(field=field) for problem in error.problems]) from error


def _problems_without_image(request: EditFields) -> Iterator[Problem]:
    if request.image is not None:
        return
    for field in ("mask", "strength", "expand"):
        if getattr(request, field) is not None:
            yield Problem(
                code="edit_without_image",
                template="means nothing without an image",
                remedy_template="give the picture to change as image, or leave it out",
                field=field,
            )


def _has_shape(mask: Image.Image, image: Image.Image) -> bool:
    """Return True if a mask has the image's aspect ratio, but for a pixel of the mask from rounding."""
    height, width = mask.width * image.height / image.width, mask.height * image.width / image.height
    return abs(height - mask.height) <= 1 or abs(width - mask.width) <= 1


def _on_grid(px: float) -> int:
    """Return the nearest multiple of 64 px."""
    return round(px / GRID_PX) * GRID_PX
