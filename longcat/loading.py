"""Flavour, precision, device to components on that device."""

import contextlib
import shutil
import sys
from collections.abc import Iterator, Mapping
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

    transformer = load_transformer(flavour, compute)
    vae = load_vae(flavour, compute)
    text_encoder = load_text_encoder(flavour, compute)
    quantize_base(transformer, precision, device=target, training=False, offload=offload)
    quantize_base(text_encoder, text_encoder_precision, device=target, training=False, offload=offload)
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
        tokenizer=load_tokenizer(flavour.folder),
        scheduler_config=load_scheduler_config(flavour),
    )


def load_transformer(flavour: Flavour, dtype: torch.dtype) -> LongCatImageTransformer2DModel:
    """The transformer, frozen, in main memory. Raises ``FlavourError``."""
    return _frozen(flavour, "transformer", LongCatImageTransformer2DModel, dtype)


def load_text_encoder(flavour: Flavour, dtype: torch.dtype) -> Qwen2_5_VLForConditionalGeneration:
    """The text encoder, likewise."""
    return _frozen(flavour, "text_encoder", Qwen2_5_VLForConditionalGeneration, dtype)


def load_vae(flavour: Flavour, dtype: torch.dtype) -> AutoencoderKL:
    """The autoencoder, likewise, in the memory format in which its convolutions are a sixth faster."""
    return _frozen(flavour, "vae", AutoencoderKL, dtype).to(memory_format=torch.channels_last)


def load_scheduler_config(flavour: Flavour) -> Mapping[str, Any]:
    """What the noise levels follow from."""
    with _damage_named(flavour):
        config: Mapping[str, Any] = FlowMatchEulerDiscreteScheduler.load_config(flavour.folder, subfolder="scheduler")
    return config


def _frozen(flavour: Flavour, part: str, kind: Any, dtype: torch.dtype) -> Any:
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
        diffusers.utils.logging.disable_progress_bar()
    with _damage_named(flavour):
        module = kind.from_pretrained(flavour.folder, subfolder=part, dtype=dtype)
    return module.eval().requires_grad_(False)


@contextlib.contextmanager
def _damage_named(flavour: Flavour) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FlavourError(
            f"flavour {flavour.name!r}: the files in {flavour.folder} are missing or damaged: {reason}"
        ) from error


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


def check_compiler(device: torch.device) -> None:
    """Refuse before loading what would fail once it is loaded. Raises ``DeviceError`` without a compiler."""
    names = ("g++", "clang++", "c++") if device.type == "cpu" else ("gcc", "clang", "cc")
    if not any(map(shutil.which, names)):
        raise DeviceError(
            f"torch.compile needs a compiler on {device.type}, and there is none ({', '.join(names)}): leave --compile out, "
            "or install one; the images have none"
        )


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
