"""The bodies of requests, shared with the client; those of errors are in ``errors``. No torch.

A request is checked twice: its shape by pydantic, then against the model and this server by ``Limits.resolve``, which also
fills in defaults.
"""

from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticKnownError

from longcat.model.shape import GRID_PX
from longcat.problem import Problem
from longcat.sampling.encoding.source_picture import steps_kept
from longcat.sampling.quality import Quality, Tolerance
from longcat.validation import ProblemValueError
from service.wire.editing.fields import EditFields, ResolvedEdit

SMALLEST_PX = GRID_PX
LARGEST_SEED = 2**63 - 1
LONGEST_URL = 2048
"""Longest URL in characters, as in most servers: splitting a URL takes quadratic time in its length."""

MAX_ADAPTERS = 4
"""Most adapters of one request: other requests wait for each slot that it holds."""

OutputFormat = Literal["png", "jpeg", "webp"]

Priority = Literal["low", "normal", "high"]
PRIORITIES: tuple[Priority, ...] = get_args(Priority)
"""From the lowest to the highest."""
NORMAL: Priority = "normal"
HIGHEST: Priority = PRIORITIES[-1]


def rank_of(priority: Priority) -> int:
    """Return the place of a priority: the higher, the sooner its requests are admitted."""
    return PRIORITIES.index(priority)


class AdapterChoice(BaseModel):
    """A LoRA adapter and the scale at which it is applied."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: Annotated[str, Field(min_length=1, description="ink: its latest version; ink@3: that version.")]
    scale: Annotated[float, Field(ge=-10, le=10, allow_inf_nan=False, description="Strength; 1 is as trained.")] = 1.0


def _not_blank(prompt: str) -> str:
    if not prompt.strip():
        raise ProblemValueError(Problem(code="blank", template="blank", remedy_template="give some text"))
    return prompt


def _not_too_many(adapters: object) -> object:
    """Check the number first: pydantic would report every item of a list that is too long."""
    if isinstance(adapters, list | tuple) and len(adapters) > MAX_ADAPTERS:
        limits = {"field_type": "Tuple", "max_length": MAX_ADAPTERS, "actual_length": len(adapters)}
        raise PydanticKnownError("too_long", limits)
    return adapters


def _from_name(choice: object) -> object:
    """Return the choice that a bare name means: the adapter at scale 1."""
    match choice:
        case str():
            return {"name": choice}
        case dict() | AdapterChoice():
            return choice
    raise ProblemValueError(
        Problem(
            code="not_an_adapter",
            template="neither the name of an adapter nor a JSON object",
            remedy_template="give {name} or {choice}",
            details={"name": '"ink"', "choice": '{"name": "ink", "scale": 0.8}'},
        )
    )


class BaseRequest(BaseModel):
    """The fields of every endpoint that generates images. All but the prompt have defaults that suit the model."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)

    prompt: Annotated[
        str,
        Field(
            min_length=1,
            json_schema_extra={"pattern": r"\S"},
            description="The image in words, in Chinese or English.",
        ),
        AfterValidator(_not_blank),
    ]
    negative_prompt: Annotated[str, Field(description="Content to avoid; needs guidance_scale over 1.")] = ""
    steps: Annotated[
        int | None, Field(ge=1, description="Denoising steps; by default the adapters' or the model's.")
    ] = None
    guidance_scale: Annotated[
        float | None,
        Field(ge=0, le=30, allow_inf_nan=False, description="Classifier-free guidance; 1 or less turns it off."),
    ] = None
    seed: Annotated[
        int | None,
        Field(ge=0, le=LARGEST_SEED, description="Image i of a request is generated from seed + i. Random if absent."),
    ] = None
    cfg_renorm: Annotated[
        bool | None,
        Field(description="Keep each token's guided norm at most the conditional one's; by default as the model's."),
    ] = None
    rewrite_prompt: Annotated[bool, Field(description="Let the model's text encoder enrich the prompt first.")] = False
    reuse_tolerance: Annotated[
        Tolerance | None,
        Field(description="Largest estimated relative error of a prediction that is reused; by default the quality's."),
    ] = None
    adapters: Annotated[
        tuple[Annotated[AdapterChoice, BeforeValidator(_from_name, json_schema_input_type=str | AdapterChoice)], ...],
        Field(
            strict=False,
            max_length=MAX_ADAPTERS,
            description="LoRA adapters, applied together: names, or names with scales. Steps and guidance that are left out "
            "are those that an adapter was made for, if it declares them.",
        ),
        BeforeValidator(_not_too_many),
    ] = ()
    priority: Annotated[
        Priority | None,
        Field(
            description="high goes before normal, normal before low, as far as the API key allows; by default normal."
        ),
    ] = None
    timeout_seconds: Annotated[
        float | None,
        Field(
            gt=0, allow_inf_nan=False, description="From arrival to reply; past it, 504, and no more steps are made."
        ),
    ] = None

    @property
    def defaulted(self) -> tuple[str, ...]:
        """The fields for which adapters may have defaults, and which the client has left out."""
        return tuple(name for name in ("steps", "guidance_scale") if getattr(self, name) is None)


class GenerateRequest(EditFields, BaseRequest):
    """The body of ``POST /generate``."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompt": "一个红苹果"},
                {"prompt": "a red apple on a blue background", "seed": 7, "steps": 16, "response_format": "json"},
            ]
        },
    )

    width: Annotated[int | None, Field(ge=SMALLEST_PX, multiple_of=GRID_PX, description="In px, a multiple of 64.")] = (
        None
    )
    height: Annotated[
        int | None, Field(ge=SMALLEST_PX, multiple_of=GRID_PX, description="In px, a multiple of 64.")
    ] = None
    quality: Annotated[
        Quality | None,
        Field(description="exact, the default, computes every row of every step; balanced and fast reuse predictions."),
    ] = None
    num_images: Annotated[int, Field(ge=1, description="Images to generate.")] = 1
    output_format: Annotated[OutputFormat, Field(description="File format of the pictures.")] = "png"
    stream: Annotated[
        bool, Field(description="Reply with server-sent events: progress after every step, then the result as JSON.")
    ] = False
    previews: Annotated[bool, Field(description="With stream: also send small previews of the unfinished images.")] = (
        False
    )
    as_job: Annotated[
        bool,
        Field(alias="async", description="Reply 202 at once, with the URL of a job, which will have the pictures."),
    ] = False
    webhook_url: Annotated[
        str | None,
        Field(
            max_length=LONGEST_URL,
            description="With async: URL that gets a signed webhook at the job's end; this server must allow its host.",
        ),
    ] = None
    response_format: Annotated[
        Literal["binary", "json"],
        Field(description="binary: the picture itself, or a zip of several; json: base64 with seed and timings."),
    ] = "binary"


class ResolvedRequest(BaseModel):
    """A valid request with every default filled in, which always gives the same image. A PNG carries it."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    prompt: str
    negative_prompt: str
    width: int
    height: int
    steps: int
    guidance_scale: float
    seed: int
    num_images: int
    cfg_renorm: bool
    rewrite_prompt: bool
    quality: Quality | None = "exact"
    """None: the request has a tolerance of its own."""
    reuse_tolerance: float = 0.0
    output_format: OutputFormat
    adapters: tuple[AdapterChoice, ...] = ()
    edit: ResolvedEdit | None = None
    """The picture that it changes; None for one from noise alone."""

    @property
    def denoising_steps(self) -> int:
        """Return the steps that are made of each image: fewer than ``steps`` if it starts from a picture."""
        return self.steps if self.edit is None else steps_kept(self.steps, self.edit.strength)

    @property
    def pixels_per_row(self) -> int:
        """Return the pixels that each row of a step computes: also the reference's, which has about the image's size."""
        return self.width * self.height * (2 if self.edit is not None and self.edit.is_reference else 1)


class TokensRequest(BaseModel):
    """The body of ``POST /v1/tokens``."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)

    prompt: str


class TokenCount(BaseModel):
    """The length of a prompt."""

    model_config = ConfigDict(frozen=True)

    tokens: Annotated[int, Field(description="As the model counts them, its template left out.")]
    max_tokens: Annotated[int, Field(description="The most that a request may have.")]
    is_exact: Annotated[
        bool, Field(description="False: the prompt is too long to be counted, tokens is the least.")
    ] = True


class AppliedAdapter(BaseModel):
    """An applied adapter: the version and its scale."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    version: int
    scale: float
    sha256: Annotated[str, Field(description="The checksum of the adapter's file.")]
    modules: Annotated[int, Field(description="Layers of the model that the adapter changed.")]

    @property
    def reference(self) -> str:
        """``name@version``."""
        return f"{self.name}@{self.version}"


class Timings(BaseModel):
    """Seconds that a request spent in each phase."""

    model_config = ConfigDict(frozen=True)

    queue_seconds: float = 0.0
    text_seconds: float
    denoise_seconds: float
    decode_seconds: float
    encode_seconds: float
    """Writing PNG, JPEG or WebP."""
