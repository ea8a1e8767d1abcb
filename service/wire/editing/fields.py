"""The fields of a request that changes a picture, as they are sent and as they are resolved. No torch."""

import base64
import binascii
from collections.abc import Sequence
from typing import Annotated, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from longcat.model.shape import GRID_PX
from longcat.problem import Problem
from longcat.sampling.encoding.source_picture import Margins
from longcat.validation import ProblemValueError

IMG2IMG_STRENGTH = 0.6
"""Strength of a request without a mask: composition and colours stay recognizable. diffusers has the same default."""
INPAINT_STRENGTH = 1.0
"""Strength of a request with a mask: nothing of what is under it stays."""
EDIT_STRENGTH = 1.0
"""Strength of a request to a model that edits: it sees the picture, and starts from noise alone."""
PICTURE_FIELDS = ("image", "mask")
"""Fields whose values are picture files."""
_DATA_URL = "data:"

Strength = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
_Pixels = Annotated[int, Field(ge=0, multiple_of=GRID_PX)]


def _content(given: object) -> object:
    """Return the bytes of a file that JSON has in base64, or in a data URL; multipart has the bytes."""
    if isinstance(given, bytes):
        return given
    if not isinstance(given, str):
        raise ProblemValueError(
            Problem(
                code="not_one_file",
                template="not one file",
                remedy_template="give one picture file, in base64 in JSON",
            )
        )
    text = given.partition(",")[2] if given.startswith(_DATA_URL) else given
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ProblemValueError(
            Problem(
                code="not_base64",
                template="not a file in base64",
                remedy_template="give the file's bytes in base64, without line breaks, or send multipart/form-data",
            )
        ) from None


PictureFile = Annotated[
    bytes, BeforeValidator(_content), WithJsonSchema({"type": "string", "contentEncoding": "base64"})
]
"""A picture file: base64 in JSON, a file in multipart/form-data."""


class Expansion(BaseModel):
    """Pixels of the generated image around the picture, which are to be made: outpainting."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    left: _Pixels = 0
    top: _Pixels = 0
    right: _Pixels = 0
    bottom: _Pixels = 0

    @property
    def margins(self) -> Margins:
        """Return the pixels as a tuple."""
        return self.left, self.top, self.right, self.bottom


class EditFields(BaseModel):
    """The fields of a request that changes a picture. Without ``image`` there are none of them."""

    image: Annotated[
        PictureFile | None,
        Field(
            repr=False,
            description="Picture to start from, in base64: PNG, JPEG, WebP and others.",
        ),
    ] = None
    mask: Annotated[
        PictureFile | None,
        Field(
            repr=False,
            description="Picture of the image's shape, in base64: what is white in it, or transparent if any of it is, is "
            "changed; the rest stays, but for an edge of 8 px around it.",
        ),
    ] = None
    strength: Annotated[
        Strength | None,
        Field(
            description="Part of the steps that are made from the image: 1 keeps nothing of it. By default "
            f"{IMG2IMG_STRENGTH:g}, and {INPAINT_STRENGTH:g} with a mask or expand. A model that edits has "
            f"{EDIT_STRENGTH:g}, as it sees the image in any case."
        ),
    ] = None
    expand: Annotated[
        Expansion | None, Field(description="In px, multiples of 64, that are added around the image and filled.")
    ] = None

    def without_pictures(self) -> Self:
        """Return the request without its files, which may be large."""
        return self.model_copy(update=dict.fromkeys(PICTURE_FIELDS))


class ResolvedEdit(BaseModel):
    """The picture that a request changes, by its checksum, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image_sha256: Annotated[str, Field(description="The checksum of the file.")]
    mask_sha256: str | None = None
    strength: float
    expand: Expansion | None = None
    is_reference: Annotated[bool, Field(description="The model edits: it sees the picture beside the image.")] = False

    @property
    def is_start(self) -> bool:
        """True if its images start from the picture, or keep a part of it."""
        return not self.is_reference or self.strength < 1 or self.has_area

    @property
    def has_area(self) -> bool:
        """True if a part of the picture stays."""
        return self.mask_sha256 is not None or self.expand is not None

    @property
    def margins(self) -> Margins:
        """Return the pixels around the picture."""
        return (self.expand or Expansion()).margins


def kind_of(edit: ResolvedEdit | None) -> str:
    """Return the kind of a request, as metrics name it."""
    match edit:
        case None:
            return "text_to_image"
        case ResolvedEdit(expand=Expansion()):
            return "outpaint"
        case ResolvedEdit(mask_sha256=str()):
            return "inpaint"
        case ResolvedEdit(is_reference=True):
            return "edit"
    return "img2img"


KINDS: Sequence[str] = ("text_to_image", "img2img", "inpaint", "outpaint", "edit")
