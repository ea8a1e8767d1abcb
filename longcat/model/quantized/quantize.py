"""Quantization of a base model in place, and the check that this machine supports it, before anything is loaded.

Weights are quantized from bfloat16 or float32; activations stay in the compute dtype, except under ``fp8-torchao`` for
inference on a GPU that multiplies in fp8.
"""

import warnings
from typing import Any

import torch
from torch import nn

from longcat.errors import PrecisionError
from longcat.model.device.heap import trim
from longcat.model.precision import Offload, Precision

# The transformer's first and last layers see every token and are tiny: quantizing them costs quality and saves nothing.
_KEPT_AT_TOP = {"x_embedder", "context_embedder", "time_embed", "norm_out", "proj_out"}
_KEPT_ANYWHERE = {"lm_head", "visual"}
"""The text encoder's language head, which encodes no prompt; its vision tower, which is small, and fits few formats."""

_FP8_MATMUL_CAPABILITY = (8, 9)
_TRIM_BYTES = 256 * 2**20
"""Weights after which freed memory is given back: after each layer it costs a third of the time."""


def check_precision(precision: Precision, *, device: torch.device, field: str = "precision") -> None:
    """Raise ``PrecisionError``, before anything is loaded, for a precision that would fail on this device."""
    if precision in (Precision.FP8_QUANTO, Precision.FP8_TORCHAO) and device.type == "mps":
        raise PrecisionError(
            "precision_no_fp8_on_mps",
            "Apple's GPUs have no fp8",
            remedy="use int8-quanto",
            field=field,
            value=precision.value,
        )


def quantize_base(
    model: nn.Module,
    precision: Precision,
    *,
    device: torch.device,
    training: bool,
    offload: Offload = Offload.NONE,
    dtype: torch.dtype | None = None,
) -> int:
    """Quantize the linear layers of a transformer or text encoder in place, and return their number.

    Layers move to ``device``, where they will compute, one at a time before they are quantized, so that a model larger than
    the device's memory fits if its quantized form does. Offloaded layers move back. With ``training``, only formats through
    which gradients flow are used: torchao's dynamic activation formats detach the base path.

    ``dtype``: the compute dtype, to which a model is converted that was loaded in another, a layer at a time. None is the
    model's own.
    """
    if precision is Precision.NO_CHANGE:
        return 0
    names = quantized_layers(model)
    freed_bytes = 0
    for name in names:
        layer = model.get_submodule(name).to(device, dtype)
        freed_bytes += sum(parameter.nbytes for parameter in layer.parameters())
        quantize_layer(model, name, precision, device=device, training=training)
        if offload is not Offload.NONE:
            model.get_submodule(name).to("cpu")
        if freed_bytes >= _TRIM_BYTES:
            freed_bytes = 0
            trim()
    if dtype is not None:
        for parameter in model.parameters():  # of the other layers
            if parameter.dtype is not dtype:
                parameter.data = parameter.data.to(dtype)
    trim()
    return len(names)


def quantized_layers(model: nn.Module) -> list[str]:
    """Return the names of the linear layers to quantize: all but the first and last, and those that encode no text."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and _is_quantized(name)]


def quantize_layer(model: nn.Module, name: str, precision: Precision, *, device: torch.device, training: bool) -> None:
    """Quantize one linear layer where it is. ``device``: where it will compute."""
    if precision.value.endswith("-quanto"):
        _quantize_quanto(model, name, precision)
    else:
        _quantize_torchao(model, name, precision, device=device, training=training)


def _is_quantized(name: str) -> bool:
    path = name.split(".")
    return path[0] not in _KEPT_AT_TOP and not _KEPT_ANYWHERE & set(path)


def _quantize_quanto(model: nn.Module, name: str, precision: Precision) -> None:
    from optimum import quanto

    _keep_quanto_plain()
    kind = {
        Precision.INT8_QUANTO: quanto.qint8,
        Precision.INT4_QUANTO: quanto.qint4,
        Precision.FP8_QUANTO: quanto.qfloat8,
    }[precision]
    quanto.quantize(model, weights=kind, include=[name])
    layer: Any = model.get_submodule(name)
    quanto.freeze(layer)


def _quantize_torchao(
    model: nn.Module, name: str, precision: Precision, *, device: torch.device, training: bool
) -> None:
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
    elif not training and layer.weight.dtype is torch.bfloat16 and _multiplies_in_fp8(device):
        # Scales per row: with one scale for the whole activation, an image would depend on the others of its batch.
        config = Float8DynamicActivationFloat8WeightConfig(granularity=PerRow())
    else:
        config = Float8WeightOnlyConfig()
    quantize_(layer, config)


def _multiplies_in_fp8(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= _FP8_MATMUL_CAPABILITY


_quanto_library: Any = None


def _keep_quanto_plain() -> None:
    """Keep quanto's weights in their plain form, and compute ``unpack`` in torch: no compiler is needed, on any device.

    quanto packs weights anew for the kernels of each device, whenever they move to it. Its own kernels (``unpack``, Marlin)
    are compiled at their first use, which takes minutes, ninja, g++ and, on a GPU, CUDA's toolkit; torch's (TinyGemm) are
    made for a few rows, while a picture has thousands, take bfloat16 only, and in a backward pass are unpacked each time:
    eight times as slow on a CPU. See ``longcat.model.seams``.
    """
    from optimum.quanto import WeightQBitsTensor, WeightQBytesTensor

    global _quanto_library
    if _quanto_library is not None:
        return

    WeightQBitsTensor.create = staticmethod(WeightQBitsTensor)
    WeightQBytesTensor.create = staticmethod(WeightQBytesTensor)
    _quanto_library = torch.library.Library("quanto", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Warning only once for all operators", category=UserWarning)
        for key in ("CPU", "CUDA", "MPS"):
            _quanto_library.impl("unpack", _unpack, key, allow_override=True)


def _unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """Return the values of bytes that hold several: all low ones come first (optimum-quanto ``tensor/packed.py``)."""
    mask = 2**bits - 1
    return torch.cat([(packed >> shift) & mask for shift in range(0, 8, bits)])
