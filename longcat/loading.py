"""Flavour, precision, device to components on that device."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
import transformers
from accelerate import cpu_offload_with_hook
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, LongCatImageTransformer2DModel
from diffusers.hooks import apply_group_offloading
from safetensors import SafetensorError
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from longcat.errors import DeviceError, FlavourError
from longcat.flavour import Flavour
from longcat.precision import Offload, Precision
from longcat.quantize import check_precision, quantize_base
from longcat.tokenizer import load_tokenizer

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Components:
    """A loaded model and what it is."""

    flavour: Flavour
    precision: Precision
    text_encoder_precision: Precision
    device: torch.device
    """Where it computes."""
    dtype: torch.dtype
    transformer: LongCatImageTransformer2DModel
    vae: AutoencoderKL
    text_encoder: Qwen2_5_VLForConditionalGeneration
    tokenizer: Qwen2Tokenizer
    scheduler_config: Mapping[str, Any]


def load(
    flavour: Flavour,
    *,
    precision: Precision = Precision.NO_CHANGE,
    text_encoder_precision: Precision = Precision.NO_CHANGE,
    device: str = "auto",
    dtype: str = "auto",
    offload: Offload = Offload.NONE,
) -> Components:
    """Load a model for inference.

    ``device``: auto, cpu, cuda, cuda:N or mps; ``dtype``: auto (float32 on a CPU, else bfloat16), float32, bfloat16 or
    float16. Raises ``DeviceError`` or ``PrecisionError`` before anything is read if this machine cannot do it.
    """
    target = parse_device(device)
    compute = parse_dtype(dtype, target)
    for wanted in (precision, text_encoder_precision):
        check_precision(wanted, device=target, dtype=compute, offload=offload)
    if offload is not Offload.NONE and target.type == "cpu":
        raise DeviceError(
            f"offload {offload.value!r} moves weights between a CPU and a device, and the device is the CPU: use 'none'"
        )

    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
        diffusers.utils.logging.disable_progress_bar()
    folder = flavour.folder
    try:
        transformer = LongCatImageTransformer2DModel.from_pretrained(folder, subfolder="transformer", dtype=compute)
        vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", dtype=compute)
        text_encoder = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder, subfolder="text_encoder", dtype=compute
        )
        scheduler_config = FlowMatchEulerDiscreteScheduler.load_config(folder, subfolder="scheduler")
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FlavourError(
            f"flavour {flavour.name!r}: the files in {folder} are missing or damaged: {reason}"
        ) from error
    for module in (transformer, vae, text_encoder):
        module.eval().requires_grad_(False)
    quantize_base(transformer, precision, device=target, training=False, offload=offload)
    quantize_base(text_encoder, text_encoder_precision, device=target, training=False, offload=offload)
    vae.to(memory_format=torch.channels_last)  # convolutions are a sixth faster so
    place(transformer, text_encoder, vae, device=target, offload=offload)
    return Components(
        flavour=flavour,
        precision=precision,
        text_encoder_precision=text_encoder_precision,
        device=target,
        dtype=compute,
        transformer=transformer,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=load_tokenizer(folder),
        scheduler_config=scheduler_config,
    )


def parse_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is CUDA, else MPS, else the CPU. Raises ``DeviceError`` if it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"device {name!r} is not known; use auto, cpu, cuda, cuda:N or mps") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(
            f"device {name!r}: this process sees {torch.cuda.device_count()} CUDA devices; use cpu or another"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("device 'mps': this machine has no Apple GPU that torch can use; use cpu")
    if device.type not in ("cpu", "cuda", "mps"):
        raise DeviceError(f"device {name!r} is not supported; use auto, cpu, cuda, cuda:N or mps")
    return device


def parse_dtype(name: str, device: torch.device) -> torch.dtype:
    """The compute dtype of that name; ``auto`` is float32 on a CPU, else bfloat16."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if name not in _DTYPES:
        raise DeviceError(f"dtype {name!r} is not known; use auto, {', '.join(_DTYPES)}")
    return _DTYPES[name]


def place(
    transformer: nn.Module, text_encoder: nn.Module, vae: nn.Module, *, device: torch.device, offload: Offload
) -> None:
    """Move the components to the device, or arrange for them to visit it."""
    if offload is Offload.NONE:
        for module in (text_encoder, transformer, vae):
            module.to(device)
    elif offload is Offload.MODEL:
        _, text_hook = cpu_offload_with_hook(text_encoder, device)
        _, transformer_hook = cpu_offload_with_hook(transformer, device, prev_module_hook=text_hook)
        cpu_offload_with_hook(vae, device, prev_module_hook=transformer_hook)
        # The text encoder sends the transformer away too: after a request that failed before decoding, it is still there.
        text_hook.hook.prev_module_hook = transformer_hook
    else:
        cpu = torch.device("cpu")
        # By layer: the transformer's blocks are not called (longcat.forward calls their layers), and the text encoder's are
        # not where diffusers looks for them.
        for module in (transformer, text_encoder):
            apply_group_offloading(module, onload_device=device, offload_device=cpu, offload_type="leaf_level")
        vae.to(device)
