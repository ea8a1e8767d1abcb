"""Quantize a base model in place, and refuse what this machine cannot do before anything is loaded.

Weights are quantized from bfloat16 or float32; activations stay in the compute dtype, except under ``fp8-torchao`` for
inference on a GPU that multiplies in fp8.
"""

import warnings
from typing import Any

import torch
from torch import nn

from longcat.errors import PrecisionError
from longcat.precision import Offload, Precision

# The transformer's first and last layers see every token and are tiny: quantizing them costs quality and saves nothing.
_KEPT_AT_TOP = {"x_embedder", "context_embedder", "time_embed", "norm_out", "proj_out"}
# The text encoder's head and eyes: neither is used to encode a prompt.
_KEPT_ANYWHERE = {"lm_head", "visual"}

_FP8_MATMUL_CAPABILITY = (8, 9)


def check_precision(precision: Precision, *, device: torch.device, dtype: torch.dtype, offload: Offload) -> None:
    """Refuse before loading what would fail, or be silently wrong, on this device."""
    if precision is Precision.INT4_QUANTO and dtype is not torch.bfloat16:
        raise PrecisionError(f"precision 'int4-quanto' computes in bfloat16 only, not {dtype}: use --dtype bfloat16")
    if precision is Precision.INT4_QUANTO and offload is not Offload.NONE:
        raise PrecisionError(
            "precision 'int4-quanto' is packed for one device and cannot be offloaded: use 'int8-torchao', or --offload none"
        )
    if precision.value.endswith("-quanto") and offload is Offload.GROUP:
        raise PrecisionError(
            f"precision {precision.value!r} cannot be offloaded by group, its inner tensors stay behind: use 'int8-torchao' "
            "or --offload model"
        )
    if precision is Precision.FP8_QUANTO and device.type == "cuda":
        raise PrecisionError("precision 'fp8-quanto' compiles CUDA code when it loads: use 'fp8-torchao'")
    if precision in (Precision.FP8_QUANTO, Precision.FP8_TORCHAO) and device.type == "mps":
        raise PrecisionError(f"precision {precision.value!r}: Apple's GPUs have no fp8; use 'int8-quanto'")


def quantize_base(
    model: nn.Module, precision: Precision, *, device: torch.device, training: bool, offload: Offload = Offload.NONE
) -> int:
    """Quantize the linear layers of a transformer or text encoder in place; return how many.

    Layers visit ``device``, where they will compute, one at a time while they shrink, so that a model larger than the
    device's memory fits if its quantized form does; unless offloaded, they stay. With ``training``, only forms through which
    gradients flow are used: torchao's dynamic activation forms detach the base path.
    """
    if precision is Precision.NO_CHANGE:
        return 0
    names = quantized_layers(model)
    for name in names:
        model.get_submodule(name).to(device)
        quantize_layer(model, name, precision, training=training)
        if offload is not Offload.NONE:
            model.get_submodule(name).to("cpu")
    return len(names)


def quantized_layers(model: nn.Module) -> list[str]:
    """Names of the linear layers that are quantized: all but the first and last, and what encodes no prompt."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and _may_shrink(name)]


def quantize_layer(model: nn.Module, name: str, precision: Precision, *, training: bool) -> None:
    """Quantize one linear layer where it is."""
    if precision.value.endswith("-quanto"):
        _quantize_quanto(model, name, precision)
    else:
        _quantize_torchao(model, name, precision, training=training)


def _may_shrink(name: str) -> bool:
    path = name.split(".")
    return path[0] not in _KEPT_AT_TOP and not _KEPT_ANYWHERE & set(path)


def _quantize_quanto(model: nn.Module, name: str, precision: Precision) -> None:
    from optimum import quanto

    kind = {
        Precision.INT8_QUANTO: quanto.qint8,
        Precision.INT4_QUANTO: quanto.qint4,
        Precision.FP8_QUANTO: quanto.qfloat8,
    }[precision]
    quanto.quantize(model, weights=kind, include=[name])
    layer: Any = model.get_submodule(name)
    quanto.freeze(layer)
    if precision is Precision.INT4_QUANTO and layer.weight.device.type == "cpu":
        _unpack_int4_without_compiler()
        # The plain form: the packed one is eight times as slow in a CPU's backward pass.
        layer.weight = nn.Parameter(layer.weight.weight_qbits_tensor(), requires_grad=False)


def _quantize_torchao(model: nn.Module, name: str, precision: Precision, *, training: bool) -> None:
    from torchao.quantization import (
        Float8DynamicActivationFloat8WeightConfig,
        Float8WeightOnlyConfig,
        Int8WeightOnlyConfig,
        PerRow,
        quantize_,
    )

    layer: Any = model.get_submodule(name)
    if precision is Precision.INT8_TORCHAO:
        config = Int8WeightOnlyConfig()
    elif not training and layer.weight.dtype is torch.bfloat16 and _multiplies_in_fp8(layer.weight.device):
        # Scales per row: one scale for the whole activation would let a picture's batch-mates change it.
        config = Float8DynamicActivationFloat8WeightConfig(granularity=PerRow())
    else:
        config = Float8WeightOnlyConfig()
    quantize_(layer, config)


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
