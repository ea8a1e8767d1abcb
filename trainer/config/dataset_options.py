"""One entry of ``data_backend_config``: the source of pictures and captions, and their preparation. No torch.

Names are SimpleTuner's; ``trainer.config.simpletuner.datasets`` takes its other options.
"""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from longcat.errors import StorageError
from longcat.problem import Problem
from longcat.storage.address import S3Address, parse_address
from longcat.validation import ProblemValueError
from trainer.config.reading.paths import PathText
from trainer.config.reading.sizes import parse_sizes

LANGUAGES = ("zh", "en", "other")
"""Languages by which captions are distinguished."""
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")


class DatasetConfig(BaseModel):
    """A dataset of captioned pictures."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    id: Annotated[str, Field(pattern=r"^[\w][\w .-]*$")]
    """Name of the dataset in reports."""
    type: Literal["local", "aws"] = "local"
    """local is a directory; aws is a bucket on S3, or on a store with the same protocol."""
    dataset_type: Literal["image", "eval", "conditioning"] = "image"
    """image is trained on; eval is held out, to measure the loss; conditioning is masks or references of another dataset's
    pictures. An entry without it that has a conditioning_type, or that another names in conditioning_data, is conditioning.
    """
    conditioning_type: Literal["mask", "segmentation", "reference_strict", "reference_loose"] | None = None
    """Kind of second pictures. mask weighs the loss by brightness, white by 1 and black by 0; segmentation weighs everything
    but black by 1. References are what a model that edits is shown: reference_strict (the default of an entry that
    conditioning_data names) is cropped as its picture and has its shape; reference_loose is cut evenly to the picture's
    shape. Other options of masks and references have no effect, but for alpha_colour."""
    conditioning_data: str | None = None
    """The id of the dataset with the masks or references of these pictures: a file of the same name for each."""
    source_dataset_id: str | None = None
    """For masks and references: the id of their pictures' dataset, instead of its conditioning_data. With it, pictures can
    have masks beside references."""

    instance_data_dir: PathText | None = None
    """The directory, searched with its subdirectories; ``s3://bucket/prefix`` is short for type ``aws``."""
    aws_bucket_name: str | None = None
    """The bucket; credentials and region come from the usual AWS chain, not from this file."""
    aws_data_prefix: str = ""
    """Prefix of the objects in the bucket."""
    aws_endpoint_url: str | None = None
    """Endpoint of an S3 store that is not AWS."""

    caption_strategy: Literal["textfile", "filename", "csv", "json", "jsonl", "instanceprompt"] = "textfile"
    """Source of captions: ``NAME.txt`` beside each picture, its file name, a table, ``NAME.json`` beside it, JSON lines, or
    ``instance_prompt`` alone."""
    caption_file: PathText | None = None
    """The file of strategies ``csv``, ``json`` and ``jsonl``, relative to the directory. By default, the only file with that
    ending; ``json`` reads a file beside each picture, unless the only one is beside none."""
    caption_endings: tuple[Annotated[str, Field(pattern=r"^[^/\\]+$")], ...] = ()
    """Endings of a picture's caption files, such as ``.zh.txt`` and ``.en.txt``: every one that exists is read. Empty is
    ``.txt``, or else ``.caption``, or else these two; ``.json`` with strategy ``json``."""
    caption_column: str | tuple[str, ...] = "caption"
    """Column or key of the caption, a text or a list of texts; or a list of columns, such as caption_zh and caption_en."""
    caption_shares: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Shares by which one of a picture's captions is chosen each time: of languages (``{"zh": 0.3, "en": 0.7}``, or other),
    of caption_endings or of columns. Captions without a share are not used. Empty chooses all alike."""
    filename_column: str = "filename"
    """Column or key of the picture's path, relative to the directory."""
    disable_multiline_split: bool = False
    """Read a text file as one caption, instead of one caption per line."""
    instance_prompt: str | None = None
    """One caption for all pictures."""
    prepend_instance_prompt: bool = False
    """Put ``instance_prompt`` before every caption."""
    only_instance_prompt: bool = False
    """Use ``instance_prompt`` instead of captions."""
    trigger_words: tuple[str, ...] = ()
    """Words that are put before a caption if it lacks them; the adapter's manifest names them."""
    shuffle_tags: bool = False
    """Shuffle the tags of captions, which are separated by commas, each time."""
    keep_tags: Annotated[int, Field(ge=0)] = 1
    """Tags at the start that are not shuffled."""

    is_regularisation_data: bool = False
    """Prior preservation: the target of these pictures is the base's own prediction at the same noise and time, so that the
    adapter changes nothing about their captions. A step on them takes a forward more."""
    repeats: Annotated[int, Field(ge=0, le=10_000)] = 0
    """Times beyond the first that an epoch shows each picture."""
    probability: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the pictures that an epoch shows."""
    max_num_samples: Annotated[int, Field(ge=1)] | None = None
    """Most pictures that are used; which ones follows from ``id`` and their content."""

    resolution: tuple[str | float, ...] | None = None
    """A number in the unit of ``resolution_type``, or sizes such as ``1024x1024,1344x768``; None is the training's."""
    resolution_type: Literal["pixel", "area", "pixel_area"] | None = None
    """Unit of a number: pixel is the shorter side in px, area is megapixels, pixel_area is the side in px of a square of the
    same area; None is the training's."""
    crop: bool = True
    """Crop pictures to the bucket's aspect ratio; if false, they are stretched to it."""
    crop_style: Literal["center", "random", "corner"] = "center"
    """Part that is kept: the centre, a place that follows from the picture's content, or the top left."""
    crop_aspect: Literal["closest", "preserve", "square", "random"] = "closest"
    """Bucket nearest to the picture's aspect ratio (``preserve`` is the same), a square, or one that follows from the
    picture's content."""
    crop_aspect_buckets: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Aspect ratios, width divided by height, whose nearest buckets are used; empty is every bucket."""
    minimum_image_size: Annotated[float, Field(ge=0)] = 0
    """Drop smaller pictures; in the unit of ``resolution_type``."""
    maximum_image_size: Annotated[float, Field(gt=0)] | None = None
    """Size from which pictures are first reduced to ``target_downsample_size``; in the unit of ``resolution_type``."""
    target_downsample_size: Annotated[float, Field(gt=0)] | None = None
    """Size of a reduced picture before it is cropped: the larger it is, the smaller the part that is kept. None is the
    smallest that covers the bucket, as for other pictures; in the unit of ``resolution_type``."""
    minimum_aspect_ratio: Annotated[float, Field(gt=0)] | None = None
    """Drop narrower pictures; width divided by height."""
    maximum_aspect_ratio: Annotated[float, Field(gt=0)] | None = None
    """Drop wider pictures; width divided by height."""
    max_upscale_threshold: Annotated[float, Field(ge=0)] | None = None
    """Drop pictures that would be enlarged by more than this share (0.2 is a fifth); None is no limit."""
    alpha_colour: str = "#ffffff"
    """Background for transparent pictures, as #rrggbb."""

    @model_validator(mode="before")
    @classmethod
    def _expand_uri(cls, given: Any) -> Any:
        """Expand ``instance_data_dir: s3://bucket/prefix`` to bucket and prefix."""
        if not isinstance(given, dict):
            return given
        uri = given.get("instance_data_dir")
        if isinstance(uri, str) and uri.startswith("s3://"):
            bucket, prefix = _bucket_and_prefix(uri)
            given = {**given, "type": "aws", "aws_bucket_name": bucket, "aws_data_prefix": prefix}
            del given["instance_data_dir"]
        return {key: value for key, value in given.items() if value is not None}

    @field_validator("conditioning_data", mode="before")
    @classmethod
    def _is_one(cls, given: Any) -> Any:
        if not isinstance(given, list | tuple):
            return given
        if len(given) > 1:
            raise ProblemValueError(
                Problem(
                    code="several_conditionings", template="several datasets; a picture is edited from one reference",
                    remedy_template="give one; masks beside references name the pictures in their source_dataset_id",
                )
            )  # fmt: skip
        return given[0] if given else None

    @field_validator("resolution", mode="before")
    @classmethod
    def _list_of_sizes(cls, given: Any) -> Any:
        return parse_sizes(given)

    @field_validator("alpha_colour")
    @classmethod
    def _is_colour(cls, given: str) -> str:
        if not _COLOUR.fullmatch(given):
            raise ProblemValueError(
                Problem(code="not_a_colour", template="not a colour", remedy_template="give one as #rrggbb")
            )
        return given

    @model_validator(mode="after")
    def _belongs_together(self) -> Self:
        if self.type == "local" and not self.instance_data_dir:
            raise ProblemValueError(
                Problem(
                    code="dataset_folder_not_given", template="missing",
                    remedy_template="give the directory of the pictures", field="instance_data_dir",
                )
            )  # fmt: skip
        if self.type == "aws" and not self.aws_bucket_name:
            raise ProblemValueError(
                Problem(
                    code="dataset_bucket_not_given", template="no bucket",
                    remedy_template="give the bucket of the pictures", field="aws_bucket_name",
                )
            )  # fmt: skip
        needs_prompt = (
            self.only_instance_prompt or self.prepend_instance_prompt or self.caption_strategy == "instanceprompt"
        )
        if needs_prompt and not self.instance_prompt:
            raise ProblemValueError(
                Problem(
                    code="instance_prompt_missing", template="missing, and caption_strategy or another option uses it",
                    remedy_template="give one", field="instance_prompt",
                )
            )  # fmt: skip
        return self

    @model_validator(mode="after")
    def _shares_fit(self) -> Self:
        if problem := _problem_of_shares(self):
            raise ProblemValueError(problem.within(field="caption_shares", value=self.caption_shares))
        return self

    @property
    def caption_sources(self) -> tuple[str, ...]:
        """The endings or columns that captions come from."""
        columns = (self.caption_column,) if isinstance(self.caption_column, str) else self.caption_column
        return self.caption_endings or columns

    @property
    def has_references(self) -> bool:
        """True for pictures that others are edited from."""
        return self.conditioning_type in ("reference_strict", "reference_loose")

    @property
    def shares_by_source(self) -> bool:
        """True if ``caption_shares`` are of endings or columns, not of languages."""
        return bool(self.caption_shares) and set(self.caption_shares) <= set(self.caption_sources)

    @property
    def uri(self) -> str:
        """The directory or ``s3://`` URI, to be shown."""
        if self.type == "aws":
            return str(S3Address(bucket=str(self.aws_bucket_name), prefix=self.aws_data_prefix))
        return str(self.instance_data_dir)


def _problem_of_shares(config: DatasetConfig) -> Problem | None:
    shares, sources = config.caption_shares, config.caption_sources
    if not shares:
        return None
    if config.only_instance_prompt or config.caption_strategy in ("instanceprompt", "filename"):
        return Problem(
            code="caption_shares_of_one", template="every picture has one caption",
            remedy_template="leave it out, or read captions from files or a table",
        )  # fmt: skip
    if not config.shares_by_source and not set(shares) <= set(LANGUAGES):
        return Problem(
            code="caption_shares_unknown", template="neither shares of languages nor of what captions are read from",
            remedy_template="give shares of {known}", details={"known": ", ".join(LANGUAGES) + " or " + ", ".join(sources)},
        )  # fmt: skip
    if not any(shares.values()):
        return Problem(
            code="caption_shares_zero", template="no share is more than 0", remedy_template="give a positive share"
        )
    return None


def _bucket_and_prefix(uri: str) -> tuple[str, str]:
    if not uri.removeprefix("s3://").strip("/"):
        return "", ""  # the missing bucket is a problem of its own
    try:
        address = parse_address(uri, field="instance_data_dir")
    except StorageError as error:
        raise ProblemValueError(error.problems[0]) from error
    assert isinstance(address, S3Address)
    return address.bucket, address.prefix
