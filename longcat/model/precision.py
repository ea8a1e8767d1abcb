"""Names of precisions and of offload modes, and those that are not supported. No torch.

Names of precisions are SimpleTuner's.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from longcat.errors import PrecisionError
from longcat.problem import Problem


class Precision(StrEnum):
    """Storage format of linear weights."""

    NO_CHANGE = "no_change"
    INT8_QUANTO = "int8-quanto"
    INT4_QUANTO = "int4-quanto"
    FP8_QUANTO = "fp8-quanto"
    INT8_TORCHAO = "int8-torchao"
    FP8_TORCHAO = "fp8-torchao"


class Offload(StrEnum):
    """Place of the weights while they do not compute."""

    NONE = "none"
    """On the device."""
    MODEL = "model"
    """In main memory; each component moves to the device while it works, so that the largest one has to fit."""
    GROUP = "group"
    """In main memory; the linear layers move to the device one by one: least device memory, slowest."""


_UNSUPPORTED: Mapping[str, Problem] = MappingProxyType(
    {
        "int4-torchao": Problem(
            code="precision_needs_mslk",
            template="needs CUDA and the mslk kernels, which are not a dependency",
            remedy_template="use int4-quanto",
        ),
        "int2-quanto": Problem(
            code="precision_two_bits",
            template="two bits leave no recognisable image",
            remedy_template="use int4-quanto",
        ),
        "fp8uz-quanto": Problem(
            code="precision_amd_only", template="is AMD's variant of fp8", remedy_template="use fp8-quanto"
        ),
        "nf4-bnb": Problem(
            code="precision_needs_bitsandbytes",
            template="needs bitsandbytes, which is not a dependency",
            remedy_template="use int4-quanto",
        ),
    }
)
"""Precisions of SimpleTuner's that are not supported."""


def parse_precision(name: str, *, field: str = "precision") -> Precision:
    """Return the precision of that name. Raises ``PrecisionError``, which names the precision to use instead."""
    if problem := _UNSUPPORTED.get(name):
        raise PrecisionError.of([problem.within(field=field, value=name)])
    try:
        return Precision(name)
    except ValueError:
        raise PrecisionError(
            "precision_unknown",
            "not a known precision",
            remedy="use one of {known}",
            field=field,
            value=name,
            known=", ".join(precision.value for precision in Precision),
        ) from None
