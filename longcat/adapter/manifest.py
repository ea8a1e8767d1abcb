"""The manifest of an adapter's version: base model, shape, origin and training. No torch."""

from typing import Annotated, Any, Literal, TypeGuard

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field

from longcat.model.shape import POSITION_POLICY
from longcat.problem import Problem
from longcat.validation import ProblemValueError

ALPHA_RANGE = (1e-6, 1e6)
"""Only damaged files have an alpha beyond it: the scale that follows has no 16-bit float."""
_MAX_RANK = 2**16


def is_alpha(value: object) -> TypeGuard[float]:
    """Return True if a value is a number, other than true and false, in the range of alphas."""
    least, most = ALPHA_RANGE
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def _is_number(given: Any) -> Any:
    """Reject true and false, which pydantic takes for 1 and 0."""
    if isinstance(given, bool):
        raise ProblemValueError(
            Problem(code="float_type", template="not a number", remedy_template="give a number, without quotes")
        )
    return given


def _is_alpha(given: float) -> float:
    if not is_alpha(given):
        least, most = ALPHA_RANGE
        raise ProblemValueError(
            Problem(
                code="alpha_out_of_range", template="not between {least:g} and {most:g}",
                remedy_template="save the adapter again", details={"least": least, "most": most},
            )
        )  # fmt: skip
    return given


Alpha = Annotated[float, BeforeValidator(_is_number), Field(gt=0, allow_inf_nan=False), AfterValidator(_is_alpha)]
Rank = Annotated[int, BeforeValidator(_is_number), Field(gt=0, le=_MAX_RANK)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BaseIdentity(_Part):
    """The base model that an adapter was trained on, and the only one that it fits."""

    flavour: str
    revision: str | None
    hash: Sha256


class WeightsIdentity(_Part):
    """Checksum and size of ``adapter.safetensors``."""

    sha256: Sha256
    size_bytes: Annotated[int, Field(gt=0, le=2**40)]
    """A terabyte at most: the time limit of a download follows from it."""


class Training(_Part):
    """The training of an adapter; imported adapters have none."""

    precision: str
    """Precision of the base model in training."""
    config: dict[str, Any]
    config_hash: Sha256
    dataset_hash: Sha256
    steps: Annotated[int, Field(ge=1)]
    losses: tuple[float, ...]
    """Last losses, each averaged over a logging interval, oldest first."""
    code_version: str


class Sampling(_Part):
    """The sampling that an adapter was made for: defaults of requests that name it."""

    steps: Annotated[int, Field(ge=1)]
    """At the noise levels of the model's own schedule for so many steps."""
    guidance_scale: Annotated[float, BeforeValidator(_is_number), Field(ge=0, le=30, allow_inf_nan=False)]


class Draft(_Part):
    """The part of a manifest that a publisher gives; the rest follows from the file and from storage."""

    base: BaseIdentity
    rank: Rank
    """Rank of the slot that the adapter needs, the largest of its modules: for LoKr and LoHa of a LoRA of their size."""
    alpha: Alpha
    """The update of LoRA is scaled by alpha / rank. Every module of LoKr and LoHa has an alpha of its own in the file."""
    kind: Annotated[str, Field(pattern=r"^(lokr|loha|lora)(\+(lokr|loha|lora))*$")] = "lora"
    """lora, lokr or loha; several kinds in one adapter are joined by "+"."""
    use_dora: bool = False
    """True if the layers also have magnitudes (``longcat.adapter.weights.dora``)."""
    target_modules: tuple[str, ...]
    tensors: Annotated[int, Field(ge=2)]
    trigger_words: tuple[str, ...] = ()
    sampling: Sampling | None = None
    """None for adapters that are sampled as their base."""
    origin: str
    """``trained``, or the format that it was imported from."""
    training: Training | None = None
    validation_images: tuple[str, ...] = ()
    """Keys beside the manifest."""
    position_policy: str = POSITION_POLICY


class Manifest(Draft):
    """The description of one version. A version is complete once its manifest exists."""

    format: Literal[1] = 1
    name: str
    version: Annotated[int, Field(ge=1)]
    created: AwareDatetime
    weights: WeightsIdentity

    @property
    def reference(self) -> str:
        """``name@version``."""
        return f"{self.name}@{self.version}"
