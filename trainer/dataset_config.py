"""One entry of ``data_backend_config``: where pictures and captions are, and what is made of them. No torch.

Names are SimpleTuner's. Entries that only say where it keeps its caches (``text_embeds``, ``image_embeds``) are left aside:
caches here are keyed by content and need no names.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

CACHE_ENTRIES = ("text_embeds", "image_embeds")
"""``dataset_type`` of entries that hold no pictures."""

_SIZE = re.compile(r"^\s*(\d+)\s*[xX×]\s*(\d+)\s*$")
_COLOUR = re.compile(r"^#[0-9a-fA-F]{6}$")


class DatasetConfig(BaseModel):
    """A set of captioned pictures."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    id: Annotated[str, Field(pattern=r"^[\w][\w .-]*$")]
    """Its name in reports."""
    type: Literal["local", "aws"] = "local"
    """A directory, or a bucket of S3 or a store that speaks its protocol."""
    dataset_type: Literal["image"] = "image"
    """Pictures; other kinds of SimpleTuner's are not for LongCat-Image."""
    disabled: bool = False
    """Leave it out."""

    instance_data_dir: str | None = None
    """The directory, searched with its subdirectories; ``s3://bucket/prefix`` is type ``aws`` in one word."""
    aws_bucket_name: str | None = None
    """The bucket; credentials and region come from the usual AWS chain, never from this file."""
    aws_data_prefix: str = ""
    """The prefix within the bucket."""
    aws_endpoint_url: str | None = None
    """Of an S3 store that is not AWS."""

    caption_strategy: Literal["textfile", "filename", "csv", "json", "jsonl", "instanceprompt"] = "textfile"
    """Captions from ``NAME.txt`` beside each picture, its file name, a table, ``NAME.json`` beside it, JSON lines, or
    ``instance_prompt`` alone."""
    caption_file: str | None = None
    """The table or JSON-lines file of strategies ``csv``, ``json`` and ``jsonl``, relative to the directory; ``json`` may go
    without. Without one, the only file there that ends so."""
    caption_column: str = "caption"
    """Its column or key with the caption: a text, or a list of several."""
    filename_column: str = "filename"
    """Its column or key with the picture's path, relative to the directory."""
    disable_multiline_split: bool = False
    """Take a text file as one caption instead of one a line."""
    instance_prompt: str | None = None
    """A caption for all pictures."""
    prepend_instance_prompt: bool = False
    """Put ``instance_prompt`` before every caption."""
    only_instance_prompt: bool = False
    """Use ``instance_prompt`` instead of captions."""
    trigger_words: tuple[str, ...] = ()
    """Put before a caption those of these that it lacks; the adapter's manifest names them."""
    shuffle_tags: bool = False
    """Captions are tags separated by commas: draw a new order each time."""
    keep_tags: Annotated[int, Field(ge=0)] = 1
    """Tags at the start that stay where they are when shuffled."""

    repeats: Annotated[int, Field(ge=0, le=10_000)] = 0
    """How many times more than once its pictures are seen in an epoch."""
    probability: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of its pictures that an epoch draws."""

    resolution: tuple[str | float, ...] | None = None
    """A number, in what ``resolution_type`` says, or sizes as ``1024x1024,1344x768``; None is the training's."""
    resolution_type: Literal["pixel", "area", "pixel_area"] | None = None
    """Whether a number is the shorter side in px, megapixels, or the side in px of a square of the same area."""
    crop: bool = True
    """Cut what sticks out of the bucket; without it, pictures are stretched by the few px that the grid asks for."""
    crop_style: Literal["center", "random", "corner"] = "center"
    """Where it is cut: evenly, at a place that follows from the picture's content, or at the top left."""
    crop_aspect: Literal["closest", "preserve", "square"] = "closest"
    """The bucket nearest to the picture's aspect ratio (``preserve`` is the same on the grid), or a square."""
    minimum_image_size: Annotated[float, Field(ge=0)] = 0
    """Leave out smaller pictures; in what ``resolution_type`` says."""
    maximum_image_size: Annotated[float, Field(gt=0)] | None = None
    """Leave out larger ones."""
    minimum_aspect_ratio: Annotated[float, Field(gt=0)] | None = None
    """Leave out narrower pictures; width divided by height."""
    maximum_aspect_ratio: Annotated[float, Field(gt=0)] | None = None
    """Leave out wider ones."""
    max_upscale_threshold: Annotated[float, Field(ge=0)] | None = None
    """Leave out pictures that would be enlarged by more than this share (0.2: by a fifth); None takes all."""
    alpha_colour: str = "#ffffff"
    """What transparent pictures are laid on."""

    cache_dir: Path | None = None
    """Accepted from SimpleTuner and not needed: see ``cache_dir`` of the training."""
    cache_dir_vae: Path | None = None
    """Likewise."""
    text_embeds: str | None = None
    """Likewise."""

    @model_validator(mode="before")
    @classmethod
    def _in_one_word(cls, given: Any) -> Any:
        """``instance_data_dir: s3://bucket/prefix`` is the bucket and the prefix."""
        if not isinstance(given, dict):
            return given
        where = given.get("instance_data_dir")
        if isinstance(where, str) and where.startswith("s3://"):
            bucket, _, prefix = where.removeprefix("s3://").partition("/")
            given = {**given, "type": "aws", "aws_bucket_name": bucket, "aws_data_prefix": prefix}
            del given["instance_data_dir"]
        for name in ("aws_access_key_id", "aws_secret_access_key"):
            if given.get(name):
                raise ValueError(
                    f"{name}: secrets do not belong in a configuration file; set {name.upper()} in the environment"
                )
        return {key: value for key, value in given.items() if value is not None}

    @field_validator("resolution", mode="before")
    @classmethod
    def _list_of_sizes(cls, given: Any) -> Any:
        return parse_sizes(given)

    @field_validator("alpha_colour")
    @classmethod
    def _is_colour(cls, given: str) -> str:
        if not _COLOUR.match(given):
            raise ValueError("give a colour as #rrggbb")
        return given

    @model_validator(mode="after")
    def _belongs_together(self) -> Self:
        if self.type == "local" and not self.instance_data_dir:
            raise ValueError("instance_data_dir: say where the pictures are")
        if self.type == "aws" and not self.aws_bucket_name:
            raise ValueError("aws_bucket_name: say in which bucket the pictures are")
        needs_prompt = (
            self.only_instance_prompt or self.prepend_instance_prompt or self.caption_strategy == "instanceprompt"
        )
        if needs_prompt and not self.instance_prompt:
            raise ValueError("instance_prompt: it is asked for and not given")
        return self

    @property
    def uri(self) -> str:
        """Where it is, for people to read."""
        if self.type == "aws":
            return f"s3://{self.aws_bucket_name}/{self.aws_data_prefix}".rstrip("/")
        return str(self.instance_data_dir)


def parse_sizes(given: Any) -> Any:
    """A number, ``1024x1024,1344x768``, or a list of both, as a tuple of numbers and ``WIDTHxHEIGHT``."""
    if given is None:
        return None
    parts = given.split(",") if isinstance(given, str) else given if isinstance(given, list | tuple) else [given]
    return tuple(_size(part) for part in parts)


def _size(part: Any) -> str | float:
    if isinstance(part, str) and (match := _SIZE.match(part)):
        return f"{int(match[1])}x{int(match[2])}"
    try:
        number = float(part)
    except (TypeError, ValueError):
        raise ValueError(f"{part!r} is neither a number nor WIDTHxHEIGHT") from None
    if not 0 < number < float("inf"):
        raise ValueError(f"{part!r} is no positive number")
    return number


def width_and_height(size: str) -> tuple[int, int]:
    """``1024x768`` in px."""
    width, _, height = size.partition("x")
    return int(width), int(height)
