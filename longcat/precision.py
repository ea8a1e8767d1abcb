"""Weight precisions of a base model: quantize in place, and refuse what this machine cannot do before anything is loaded.

Names are SimpleTuner's. Weights are quantized from bfloat16 or float32; activations stay in the compute dtype, except
under ``fp8-torchao`` for inference on a GPU that multiplies in fp8.
"""

import warnings
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import nn

from longcat.errors import PrecisionError


class Precision(StrEnum):
    """How the base model's linear weights are stored."""

    NO_CHANGE = "no_change"
    INT8_QUANTO = "int8-quanto"
    INT4_QUANTO = "int4-quanto"
    FP8_QUANTO = "fp8-quanto"
    INT8_TORCHAO = "int8-torchao"
    FP8_TORCHAO = "fp8-torchao"


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

# The first and last layers see every token and are tiny: quantizing them costs quality and saves nothing.
_KEPT_WHOLE = ("x_embedder", "context_embedder", "time_embed", "norm_out", "proj_out", "lm_head", "visual")

_FP8_MATMUL_CAPABILITY = (8, 9)


def parse_precision(name: str) -> Precision:
    """The precision of that name. Raises ``PrecisionError`` naming what to use instead."""
    if refusal := _REFUSED.get(name):
        raise PrecisionError(f"precision {name!r} {refusal.reason}; use {refusal.instead.value!r}")
    try:
        return Precision(name)
    except ValueError:
        known = ", ".join(precision.value for precision in Precision)
        raise PrecisionError(f"precision {name!r} is not known; use one of {known}") from None


def check_precision(precision: Precision, *, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse before loading what would fail, or be silently wrong, on this device."""
    if precision is Precision.INT4_QUANTO and dtype is not torch.bfloat16:
        raise PrecisionError(f"precision 'int4-quanto' computes in bfloat16 only, not {dtype}: use --dtype bfloat16")
    if precision in (Precision.FP8_QUANTO, Precision.FP8_TORCHAO) and device.type == "mps":
        instead = Precision.INT8_QUANTO.value
        raise PrecisionError(f"precision {precision.value!r}: Apple's GPUs have no fp8; use {instead!r}")


def quantize_base(model: nn.Module, precision: Precision, *, device: torch.device, training: bool) -> int:
    """Quantize the linear layers of a transformer or text encoder in place; return how many.

    Layers move to ``device`` one at a time as they shrink, so that a model larger than the device's memory fits if its
    quantized form does; the caller moves the rest. With ``training``, only forms through which gradients flow are used:
    torchao's dynamic activation forms detach the base path.
    """
    if precision is Precision.NO_CHANGE:
        return 0
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and _may_shrink(name)]
    if precision.value.endswith("-quanto"):
        _quantize_quanto(model, names, precision, device)
    else:
        _quantize_torchao(model, set(names), precision, device, training=training)
    return len(names)


def _may_shrink(name: str) -> bool:
    return name.split(".")[0] not in _KEPT_WHOLE and not {"visual", "lm_head"} & set(name.split("."))


def _quantize_quanto(model: nn.Module, names: list[str], precision: Precision, device: torch.device) -> None:
    from optimum import quanto

    kind = {
        Precision.INT8_QUANTO: quanto.qint8,
        Precision.INT4_QUANTO: quanto.qint4,
        Precision.FP8_QUANTO: quanto.qfloat8,
    }[precision]
    plain_int4 = precision is Precision.INT4_QUANTO and device.type == "cpu"
    if plain_int4:
        _unpack_int4_without_compiler()
    for name in names:
        model.get_submodule(name).to(device)
        quanto.quantize(model, weights=kind, include=[name])
        module: Any = model.get_submodule(name)
        quanto.freeze(module)
        if plain_int4 and hasattr(module.weight, "weight_qbits_tensor"):
            # The packed form is eight times as slow in a CPU's backward pass.
            module.weight = nn.Parameter(module.weight.weight_qbits_tensor(), requires_grad=False)


def _quantize_torchao(
    model: nn.Module, names: set[str], precision: Precision, device: torch.device, *, training: bool
) -> None:
    from torchao.quantization import (
        Float8DynamicActivationFloat8WeightConfig,
        Float8WeightOnlyConfig,
        Int8WeightOnlyConfig,
        quantize_,
    )

    if precision is Precision.INT8_TORCHAO:
        config = Int8WeightOnlyConfig()
    elif not training and _multiplies_in_fp8(device):
        config = Float8DynamicActivationFloat8WeightConfig()
    else:
        config = Float8WeightOnlyConfig()
    quantize_(model, config, filter_fn=lambda _, name: name in names, device=device)


def _multiplies_in_fp8(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= _FP8_MATMUL_CAPABILITY


_int4_library: Any = None


def _unpack_int4_without_compiler() -> None:
    """Replace quanto's C++ unpacking, which compiles for minutes on first use and needs ninja and g++.

    Two 4-bit values a byte, first halves first (optimum-quanto ``tensor/packed.py``). As fast in plain torch.
    """
    global _int4_library
    if _int4_library is not None:
        return

    def unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
        mask = 2**bits - 1
        return torch.cat([(packed >> shift) & mask for shift in range(0, 8, bits)])

    _int4_library = torch.library.Library("quanto", "IMPL")  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Warning only once for all operators", category=UserWarning)
        _int4_library.impl("unpack", unpack, "CPU", allow_override=True)
