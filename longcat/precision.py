"""How a model's weights are stored, and where they wait while they are not used: names and what is refused. No torch.

Names of precisions are SimpleTuner's.
"""

from dataclasses import dataclass
from enum import StrEnum

from longcat.errors import PrecisionError


class Precision(StrEnum):
    """How linear weights are stored."""

    NO_CHANGE = "no_change"
    INT8_QUANTO = "int8-quanto"
    INT4_QUANTO = "int4-quanto"
    FP8_QUANTO = "fp8-quanto"
    INT8_TORCHAO = "int8-torchao"
    FP8_TORCHAO = "fp8-torchao"


class Offload(StrEnum):
    """Where weights wait while they are not computing."""

    NONE = "none"
    """On the device."""
    MODEL = "model"
    """In main memory; each component visits the device while it works: the largest one has to fit."""
    GROUP = "group"
    """In main memory; the transformer's blocks and the text encoder's layers visit one by one: least memory, slowest."""


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A precision of SimpleTuner's that is not had here, why, and what to use instead."""

    reason: str
    instead: Precision


_REFUSED = {
    "int4-torchao": Refusal(reason="needs CUDA and the mslk kernels", instead=Precision.INT4_QUANTO),
    "int2-quanto": Refusal(reason="two bits leave no recognisable picture", instead=Precision.INT4_QUANTO),
    "fp8uz-quanto": Refusal(reason="is AMD's fp8 variant", instead=Precision.FP8_QUANTO),
    "nf4-bnb": Refusal(reason="needs bitsandbytes, which is not a dependency", instead=Precision.INT4_QUANTO),
}


def parse_precision(name: str) -> Precision:
    """The precision of that name. Raises ``PrecisionError`` naming what to use instead."""
    if refusal := _REFUSED.get(name):
        raise PrecisionError(f"precision {name!r} {refusal.reason}; use {refusal.instead.value!r}")
    try:
        return Precision(name)
    except ValueError:
        known = ", ".join(precision.value for precision in Precision)
        raise PrecisionError(f"precision {name!r} is not known; use one of {known}") from None
