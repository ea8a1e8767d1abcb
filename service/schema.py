"""Request, response and error body of ``POST /generate``, and what makes a request valid for the model at hand. No torch.

A body is checked twice: its shape here by pydantic, then against the model (``Limits.resolve``), which also fills in
defaults. Both speak through ``InvalidRequestError``: the field, its value, what is wrong, what to give instead.
"""

import difflib
import math
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from longcat.adapter import parse_reference
from longcat.errors import AdapterError, PromptTooLongError, UserError
from longcat.flavour import ModelSettings
from longcat.prompt import Tokenize, tokenize_prompt

GRID_PX = 64
SMALLEST_PX = 64
LARGEST_SEED = 2**63 - 1
_SHOWN_CHARACTERS = 80

MAX_ADAPTERS = 4
"""Most adapters of one request: each slot that it holds is one that others wait for."""

OutputFormat = Literal["png", "jpeg", "webp"]


class AdapterChoice(BaseModel):
    """A LoRA adapter, and how strongly it is applied."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: Annotated[str, Field(min_length=1, description="ink: its latest version; ink@3: that version.")]
    scale: Annotated[float, Field(ge=-10, le=10, allow_inf_nan=False, description="1 is as it was trained.")] = 1.0


class GenerateRequest(BaseModel):
    """What to draw. Everything but the prompt has a default that fits the model."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        json_schema_extra={
            "examples": [
                {"prompt": "一个红苹果"},
                {"prompt": "a red apple on a blue background", "seed": 7, "steps": 16, "response_format": "json"},
            ]
        },
    )

    prompt: Annotated[str, Field(min_length=1, description="What to draw, in Chinese or English.")]
    negative_prompt: Annotated[str, Field(description="What to keep away from; needs guidance_scale over 1.")] = ""
    width: Annotated[int | None, Field(ge=SMALLEST_PX, multiple_of=GRID_PX, description="In px, a multiple of 64.")] = (
        None
    )
    height: Annotated[
        int | None, Field(ge=SMALLEST_PX, multiple_of=GRID_PX, description="In px, a multiple of 64.")
    ] = None
    steps: Annotated[int | None, Field(ge=1, description="Denoising steps.")] = None
    guidance_scale: Annotated[
        float | None,
        Field(ge=0, le=30, allow_inf_nan=False, description="Classifier-free guidance; 1 or less turns it off."),
    ] = None
    seed: Annotated[
        int | None,
        Field(ge=0, le=LARGEST_SEED, description="Picture i of a request is drawn from seed + i. Random if absent."),
    ] = None
    num_images: Annotated[int, Field(ge=1, description="Pictures to draw.")] = 1
    cfg_renorm: Annotated[bool, Field(description="Keep each token's guided norm at most the conditional one's.")] = (
        True
    )
    rewrite_prompt: Annotated[bool, Field(description="Let the model's text encoder enrich the prompt first.")] = False
    adapters: Annotated[
        tuple[AdapterChoice, ...], Field(max_length=MAX_ADAPTERS, description="LoRA adapters, applied together.")
    ] = ()
    output_format: Annotated[OutputFormat, Field(description="File format of the pictures.")] = "png"
    timeout_seconds: Annotated[
        float | None,
        Field(
            gt=0, allow_inf_nan=False, description="From arrival to reply; past it, 504, and no more steps are made."
        ),
    ] = None
    stream: Annotated[
        bool, Field(description="Reply with server-sent events: progress after every step, then the result as JSON.")
    ] = False
    previews: Annotated[bool, Field(description="With stream: small pictures of what is becoming, too.")] = False
    response_format: Annotated[
        Literal["binary", "json"],
        Field(description="binary: the picture itself, or a zip of several; json: base64 with seed and timings."),
    ] = "binary"


class ResolvedRequest(BaseModel):
    """A valid request with every default filled in: it makes the same picture each time. What a PNG carries."""

    model_config = ConfigDict(extra="forbid", frozen=True)

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
    output_format: OutputFormat
    adapters: tuple[AdapterChoice, ...] = ()


class AppliedAdapter(BaseModel):
    """Proof of what was applied."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    version: int
    scale: float
    sha256: Annotated[str, Field(description="Of the adapter's file.")]
    modules: Annotated[int, Field(description="Layers of the model that it changed.")]

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


class GeneratedImage(BaseModel):
    """One picture of a JSON response."""

    seed: int
    b64: Annotated[str, Field(description="The file in base64.")]


class GenerateResponse(BaseModel):
    """The body with ``response_format: json``."""

    request_id: str
    model_hash: str
    prompt: Annotated[str, Field(description="The prompt that was drawn: the rewritten one, if it was.")]
    request: ResolvedRequest
    adapters: list[AppliedAdapter]
    timings: Timings
    media_type: str
    images: list[GeneratedImage]


class StepEvent(BaseModel):
    """The data of the server-sent event ``progress``."""

    image: int
    step: int
    steps: int


class PreviewEvent(BaseModel):
    """The data of the server-sent event ``preview``."""

    image: int
    step: int
    media_type: str = "image/jpeg"
    b64: str


class FieldProblem(BaseModel):
    """One field that is wrong."""

    field: Annotated[str, Field(description="Its name; empty for the body as a whole.")]
    value: Annotated[str, Field(description="What was given, shortened.")]
    problem: str
    remedy: str


class ErrorDetail(BaseModel):
    """What went wrong."""

    code: str
    message: str
    fields: list[FieldProblem] = []


class ErrorBody(BaseModel):
    """The body of every reply that is not a picture."""

    error: ErrorDetail


class InvalidRequestError(UserError):
    """A request that cannot be drawn, with every field that is wrong."""

    def __init__(self, problems: list[FieldProblem]) -> None:
        super().__init__("; ".join(f"{p.field or 'body'}: {p.problem}; {p.remedy}" for p in problems))
        self.problems = problems


class NotJsonError(UserError):
    """A body that is no JSON at all."""


class BodyTooLargeError(UserError):
    """A body over the size limit."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request may ask of this model on this server."""

    settings: ModelSettings
    max_pixels: int
    """Largest width times height."""
    max_steps: int
    max_images: int
    """Most pictures a request."""
    has_adapters: bool
    """Whether adapters can be had at all."""

    @classmethod
    def of_model(cls, settings: ModelSettings, *, has_adapters: bool = False) -> Self:
        """No limits but the model's own: for a person drawing on their own machine."""
        return cls(
            settings=settings,
            max_pixels=settings.max_pixels,
            max_steps=sys.maxsize,
            max_images=sys.maxsize,
            has_adapters=has_adapters,
        )

    def resolve(self, request: GenerateRequest, tokenize: Tokenize) -> ResolvedRequest:
        """Fill in the model's defaults and hold the request against the limits. Raises ``InvalidRequestError``."""
        size = self.settings.default_size_px
        resolved = ResolvedRequest(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            width=size if request.width is None else request.width,
            height=size if request.height is None else request.height,
            steps=min(self.settings.default_steps, self.max_steps) if request.steps is None else request.steps,
            guidance_scale=(
                self.settings.default_guidance_scale if request.guidance_scale is None else request.guidance_scale
            ),
            seed=secrets.randbelow(2**32) if request.seed is None else request.seed,
            num_images=request.num_images,
            cfg_renorm=request.cfg_renorm,
            rewrite_prompt=request.rewrite_prompt,
            output_format=request.output_format,
            adapters=request.adapters,
        )
        problems = [
            *self._size_problems(resolved), *self._count_problems(resolved), *self._adapter_problems(resolved)
        ]  # fmt: skip
        for field in ("prompt", "negative_prompt"):
            problems += self._prompt_problems(field, getattr(resolved, field), tokenize)
        if resolved.rewrite_prompt and not self.settings.rewrites_prompts:
            problems.append(
                _problem(
                    "rewrite_prompt",
                    True,
                    "this model's text encoder cannot write",
                    "give false, or serve flavour final",
                )
            )
        if problems:
            raise InvalidRequestError(problems)
        return resolved

    def _size_problems(self, request: ResolvedRequest) -> list[FieldProblem]:
        pixels = request.width * request.height
        if pixels <= self.max_pixels:
            return []
        side = math.isqrt(self.max_pixels) // GRID_PX * GRID_PX
        return [
            _problem(
                "width",
                request.width,
                f"{request.width} x {request.height} is {pixels} pixels; at most {self.max_pixels} are drawn here",
                f"give at most {side} x {side}",
            )
        ]

    def _count_problems(self, request: ResolvedRequest) -> list[FieldProblem]:
        limits = {"steps": self.max_steps, "num_images": self.max_images}
        problems = [
            _problem(field, getattr(request, field), f"more than the {limit} allowed here", f"give at most {limit}")
            for field, limit in limits.items()
            if getattr(request, field) > limit
        ]
        if request.seed + request.num_images - 1 > LARGEST_SEED:
            problems.append(_problem("seed", request.seed, "seed + num_images leaves 63 bits", "give a smaller seed"))
        return problems

    def _adapter_problems(self, request: ResolvedRequest) -> list[FieldProblem]:
        if request.adapters and not self.has_adapters:
            remedy = "leave it out, or start with --adapters"
            return [_problem("adapters", request.adapters[0].name, "no adapter storage is configured here", remedy)]
        problems, names = [], set()
        for i, choice in enumerate(request.adapters):
            try:
                name = parse_reference(choice.name).name
            except AdapterError as error:
                problems.append(_problem(f"adapters.{i}.name", choice.name, str(error), "give a name that can be"))
                continue
            if name in names:
                problems.append(_problem(f"adapters.{i}.name", choice.name, f"{name} is there twice", "give it once"))
            names.add(name)
        return problems

    def _prompt_problems(self, field: str, prompt: str, tokenize: Tokenize) -> list[FieldProblem]:
        try:
            tokenize_prompt(prompt, tokenize, max_tokens=self.settings.max_prompt_tokens)
        except PromptTooLongError as error:
            remedy = f"shorten it by at least {error.tokens - error.max_tokens} tokens"
            return [
                _problem(field, prompt, f"{error.tokens} tokens; the model reads at most {error.max_tokens}", remedy)
            ]
        return []


def parse_request(body: bytes) -> GenerateRequest:
    """A request from JSON, whatever content type it came with. Raises ``NotJsonError`` or ``InvalidRequestError``."""
    try:
        return GenerateRequest.model_validate_json(body)
    except ValidationError as error:
        raise _refusal(error) from error


def check_request(fields: Mapping[str, Any]) -> GenerateRequest:
    """A request from its fields. Raises ``InvalidRequestError``."""
    try:
        return GenerateRequest.model_validate(fields)
    except ValidationError as error:
        raise _refusal(error) from error


def show(value: object) -> str:
    """A value as an error message shows it: short, whatever it is."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}… ({len(text)} characters)"


def _problem(field: str, value: object, problem: str, remedy: str) -> FieldProblem:
    return FieldProblem(field=field, value=show(value), problem=problem, remedy=remedy)


def _refusal(error: ValidationError) -> UserError:
    problems = error.errors(include_url=False)
    if problems[0]["type"] == "json_invalid":
        return NotJsonError(f"the body is not JSON ({problems[0]['ctx']['error']}); send one JSON object")
    return InvalidRequestError([_from_pydantic(problem) for problem in problems])


def _from_pydantic(error: Mapping[str, Any]) -> FieldProblem:
    field = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return _problem(field, error["input"], "unknown field", _nearest(field))
    remedy = _REMEDIES.get(error["type"], "see /docs for what the field takes").format_map(error.get("ctx", {}))
    return _problem(field, error["input"], str(error["msg"]), remedy)


def _nearest(field: str) -> str:
    model = AdapterChoice if field.startswith("adapters.") else GenerateRequest
    names = list(model.model_fields)
    close = difflib.get_close_matches(field.rpartition(".")[2], names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known fields: {', '.join(names)}"


_REMEDIES = {
    "missing": "give it",
    "string_type": "give a string",
    "string_too_short": "give some text",
    "int_type": "give a whole number, without quotes",
    "int_from_float": "give a whole number",
    "float_type": "give a number, without quotes",
    "finite_number": "give a finite number",
    "greater_than": "give more than {gt}",
    "tuple_type": 'give a list, as in [{{"name": "ink"}}]',
    "too_long": "give at most {max_length}",
    "bool_type": "give true or false",
    "multiple_of": "give a multiple of {multiple_of}",
    "greater_than_equal": "give at least {ge}",
    "less_than_equal": "give at most {le}",
    "literal_error": "give {expected}",
    "model_type": 'send one JSON object with at least a "prompt"',
}
"""What to do about each of pydantic's error types; braces are filled from the error's context."""
