"""Bodies of the OpenAI-compatible endpoints, named as OpenAI's clients know them."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from typing_extensions import override

from longcat.errors import UserError
from longcat.model.shape import image_tokens
from longcat.sampling.quality import Quality
from longcat.validation import validated
from service.wire.editing.fields import Expansion, PictureFile, Strength
from service.wire.schema import AdapterChoice, BaseRequest, GenerateRequest, OutputFormat

MOST_PICTURES = 1
"""Pictures that a request can change at once."""
_SIZE = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")


OpenAIQuality = Literal["auto", "standard", "hd", "high", "medium", "low", "exact", "balanced", "fast"]
"""OpenAI's qualities, of all its models, and ours."""
_QUALITIES: Mapping[OpenAIQuality, Quality] = {
    "auto": "exact", "standard": "exact", "hd": "exact", "high": "exact", "medium": "balanced", "low": "fast",
    "exact": "exact", "balanced": "balanced", "fast": "fast",
}  # fmt: skip
AnsweredQuality = Literal["auto", "high", "medium", "low"]
_ANSWERED: Mapping[Quality | None, AnsweredQuality] = {
    None: "auto", "exact": "high", "balanced": "medium", "fast": "low",
}  # fmt: skip


def answered_quality(quality: Quality | None) -> AnsweredQuality:
    """Return the quality of a resolved request as OpenAI's replies name it."""
    return _ANSWERED[quality]


class ImagesRequest(BaseRequest):
    """The body of ``POST /v1/images/generations``: OpenAI's fields, and ours, which its clients take as ``extra_body``."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompt": "a red apple", "size": "128x128", "n": 2},
                {"prompt": "一只猫", "model": "embedded", "seed": 3, "stream": True, "partial_images": 2},
            ]
        }
    )

    model: Annotated[
        str | None, Field(description="The base model, or an adapter: ink, ink@3. GET /v1/models lists them.")
    ] = None
    n: Annotated[int | None, Field(ge=1, description="Images to generate.")] = None
    size: Annotated[str | None, Field(description="WIDTHxHEIGHT in px, multiples of 64, or auto.")] = None
    output_format: OutputFormat | None = None
    response_format: Annotated[Literal["b64_json"] | None, Field(description="Pictures are always b64_json.")] = None
    stream: bool | None = None
    partial_images: Annotated[
        int | None, Field(ge=0, le=3, description="With stream: most small JPEGs of each unfinished image.")
    ] = None
    background: Annotated[Literal["auto", "opaque"] | None, Field(description="Pictures are opaque.")] = None
    output_compression: Annotated[
        Literal[100] | None, Field(description="JPEG and WebP are written at one quality, a high one.")
    ] = None
    quality: Annotated[
        OpenAIQuality | None,
        Field(description="high, hd, standard and auto are exact, medium is balanced, low is fast; or by those names."),
    ] = None
    style: Annotated[str | None, Field(description="No effect: describe it in the prompt.")] = None
    moderation: Annotated[str | None, Field(description="No effect: there is no moderation.")] = None
    user: Annotated[str | None, Field(description="No effect.")] = None
    safety_identifier: Annotated[str | None, Field(description="No effect.")] = None

    def as_generate(self, base: str) -> GenerateRequest:
        """Return the request in our own fields; ``base`` is the base model's name. Raises ``UserError``."""
        fields: dict[str, Any] = {name: getattr(self, name) for name in BaseRequest.model_fields}
        if self.size is not None and self.size != "auto":
            if (match := _SIZE.fullmatch(self.size)) is None:
                raise UserError(
                    "size_format",
                    "not a size",
                    remedy="give WIDTHxHEIGHT, as in 128x128, or auto",
                    field="size",
                    value=self.size,
                )
            fields |= {"width": int(match[1]), "height": int(match[2])}
        if (adapter := self.adapter(base)) is not None and adapter not in (choice.name for choice in self.adapters):
            fields["adapters"] = (AdapterChoice(name=adapter), *self.adapters)
        if self.quality is not None:
            fields["quality"] = _QUALITIES[self.quality]
        fields |= self._picture_fields()
        fields |= {"num_images": self.n or 1, "output_format": self.output_format or "png"}
        return validated(GenerateRequest, fields)

    def _picture_fields(self) -> dict[str, Any]:
        """Return the fields of the picture that the request changes; none here."""
        return {}

    def adapter(self, base: str) -> str | None:
        """Return the adapter that the request names as its model. Some clients send an empty name for the default."""
        return None if self.model in (None, "", base) else self.model


def _as_list(given: object) -> object:
    return given if isinstance(given, list | tuple) else [given]


class EditsRequest(ImagesRequest):
    """The body of ``POST /v1/images/edits``: inpainting with a mask, else img2img."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"prompt": "a green apple", "image": "iVBORw0KGgo="}]})

    image: Annotated[
        tuple[PictureFile, ...],
        Field(
            strict=False,
            min_length=1,
            repr=False,
            description="The picture to change; image[] and OpenAI's images work, too.",
        ),
        BeforeValidator(_as_list),
    ]
    mask: Annotated[
        PictureFile | None, Field(repr=False, description="What is transparent in it is changed, the rest stays.")
    ] = None
    strength: Annotated[Strength | None, Field(description="Ours: as in POST /generate.")] = None
    expand: Annotated[Expansion | None, Field(description="Ours: as in POST /generate.")] = None
    input_fidelity: Annotated[str | None, Field(description="No effect: give a strength.")] = None

    @staticmethod
    def prepared(fields: dict[str, Any]) -> dict[str, Any]:
        """Return a body whose pictures are references, as in OpenAI's JSON, with the pictures in their place.

        Raises ``UserError`` for references other than data URLs: this server fetches nothing.
        """
        fields = dict(fields)
        if isinstance(fields.get("images"), list) and "image" not in fields:
            fields["image"] = [_content_of(each, f"images.{i}") for i, each in enumerate(fields.pop("images"))]
        if isinstance(fields.get("mask"), dict):
            fields["mask"] = _content_of(fields["mask"], "mask")
        return fields

    @override
    def _picture_fields(self) -> dict[str, Any]:
        if len(self.image) > MOST_PICTURES:
            raise UserError(
                "too_many_images",
                "this model takes {most} picture",
                remedy="send the one to change",
                field="image",
                value=f"{len(self.image)} pictures",
                most=MOST_PICTURES,
            )
        return {"image": self.image[0], "mask": self.mask, "strength": self.strength, "expand": self.expand}


def _content_of(reference: object, field: str) -> str:
    """Return the data URL that a reference to a picture has."""
    url = reference.get("image_url") if isinstance(reference, dict) and len(reference) == 1 else None
    if not isinstance(url, str) or not url.startswith("data:"):
        raise UserError(
            "image_reference",
            "not a picture in a data URL; this server fetches none",
            remedy="give {example}",
            field=field,
            example='{"image_url": "data:image/png;base64,..."}',
        )
    return url


class ImageDatum(BaseModel):
    """One picture."""

    b64_json: str
    revised_prompt: Annotated[str | None, Field(description="The rewritten prompt, with rewrite_prompt.")] = None
    seed: Annotated[int, Field(description="Ours: generates this image alone again.")]


class UsageDetails(BaseModel):
    """Tokens by kind."""

    image_tokens: int
    text_tokens: int


class Usage(BaseModel):
    """Tokens of the prompt, and of the images: one for each 16 x 16 px."""

    input_tokens: int
    input_tokens_details: UsageDetails
    output_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, *, text_tokens: int, width_px: int, height_px: int, pictures: int) -> Self:
        """Return the usage of images of one size."""
        output = pictures * image_tokens(width_px=width_px, height_px=height_px)
        return cls(
            input_tokens=text_tokens,
            input_tokens_details=UsageDetails(image_tokens=0, text_tokens=text_tokens),
            output_tokens=output,
            total_tokens=text_tokens + output,
        )


class ImagesResponse(BaseModel):
    """The body of a reply."""

    created: int
    background: Literal["opaque"] = "opaque"
    data: list[ImageDatum]
    output_format: OutputFormat
    quality: AnsweredQuality
    size: str
    usage: Usage


class _ImageEvent(BaseModel):
    b64_json: str
    background: Literal["opaque"] = "opaque"
    created_at: int
    output_format: OutputFormat
    quality: AnsweredQuality
    size: str
    image_index: Annotated[int, Field(description="Ours: which of n pictures.")]


class PartialImageEvent(_ImageEvent):
    """A small JPEG of an unfinished image."""

    type: Literal["image_generation.partial_image", "image_edit.partial_image"] = "image_generation.partial_image"
    partial_image_index: int


class CompletedEvent(_ImageEvent):
    """A picture."""

    type: Literal["image_generation.completed", "image_edit.completed"] = "image_generation.completed"
    usage: Usage
    seed: Annotated[int, Field(description="Ours.")]


class ModelCard(BaseModel):
    """A model that a request can name: the base, or an adapter on it."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["lithograph"] = "lithograph"
    root: Annotated[str, Field(description="The version that the name means now; as vLLM has it.")]
    parent: Annotated[str | None, Field(description="The base model of an adapter; as vLLM has it.")] = None


class ModelList(BaseModel):
    """The body of ``GET /v1/models``."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
