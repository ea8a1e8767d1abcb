"""Loading: a flavour's components, in a precision, on a device."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, LongCatImageTransformer2DModel
from safetensors import SafetensorError, safe_open
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from longcat.errors import DeviceError, FlavourError
from longcat.model.device.choice import parse_device, parse_dtype
from longcat.model.flavour import Flavour
from longcat.model.offload import place
from longcat.model.precision import Offload, Precision
from longcat.model.quantized.quantize import check_precision, quantize_base
from longcat.model.quantized.snapshot import Snapshot
from longcat.model.quantized.structure import text_encoder_structure, transformer_structure
from longcat.model.tokenizer import load_tokenizer

_CPU = torch.device("cpu")
_STORED = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Components:
    """A loaded model, its flavour and its settings."""

    flavour: Flavour
    precision: Precision
    text_encoder_precision: Precision
    device: torch.device
    """The device that computes, also of weights that are offloaded."""
    dtype: torch.dtype
    transformer: LongCatImageTransformer2DModel
    vae: AutoencoderKL
    text_encoder: Qwen2_5_VLForConditionalGeneration
    tokenizer: Qwen2Tokenizer
    image_processor: Qwen2VLImageProcessorPil | None = None
    """The vision tower's, of a model that edits; None for one that does not."""
    scheduler_config: Mapping[str, Any]


def load(
    flavour: Flavour,
    *,
    precision: Precision = Precision.NO_CHANGE,
    text_encoder_precision: Precision = Precision.NO_CHANGE,
    device: str = "auto",
    dtype: str = "auto",
    offload: Offload = Offload.NONE,
    quantized_folder: Path | None = None,
) -> Components:
    """Load a model for inference.

    ``quantized_folder``: keeps quantized weights, which the next start reads (``longcat.model.quantized.snapshot``).

    ``device``: auto, cpu, cuda, cuda:N or mps; ``dtype``: auto (float32 on a CPU, else bfloat16), float32, bfloat16 or
    float16. Raises ``DeviceError`` or ``PrecisionError``, before anything is read, for what this machine does not support.
    """
    target = parse_device(device)
    compute = parse_dtype(dtype, target)
    check_precision(precision, device=target)
    check_precision(text_encoder_precision, device=target, field="text_encoder_precision")
    _check_offload(offload, target)
    storage = partial(
        _load_quantized, flavour, compute, device=target, offload=offload, quantized_folder=quantized_folder
    )
    transformer = storage("transformer", precision, load_transformer, transformer_structure)
    vae = load_vae(flavour, compute)
    sees = flavour.settings.edits
    kinds = partial(load_text_encoder, sees=sees), partial(text_encoder_structure, sees=sees)
    text_encoder = storage("text_encoder", text_encoder_precision, *kinds)
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
        image_processor=load_image_processor(flavour) if sees else None,
        scheduler_config=load_scheduler_config(flavour),
    )


def _check_offload(offload: Offload, device: torch.device) -> None:
    if offload is not Offload.NONE and device.type == "cpu":
        raise DeviceError(
            "offload_on_cpu",
            "moves weights between main memory and a device, and the device is the CPU",
            remedy="use none",
            field="offload",
            value=offload.value,
        )


def _load_quantized(
    flavour: Flavour,
    dtype: torch.dtype,
    component: str,
    precision: Precision,
    read: Callable[..., Any],
    structure: Callable[[Flavour, torch.dtype], Any],
    *,
    device: torch.device,
    offload: Offload,
    quantized_folder: Path | None,
) -> Any:
    """Load a component in a precision: from the snapshot of an earlier start, or from the model's files."""
    snapshot = None
    if quantized_folder is not None and precision is not Precision.NO_CHANGE:
        snapshot = Snapshot(
            folder=quantized_folder,
            base_hash=flavour.hash,
            component=component,
            precision=precision,
            dtype=dtype,
            device=device,
        )
        if snapshot.exists():
            model = structure(flavour, dtype)
            if snapshot.read(model, offload=offload):
                return model
    model = read(flavour, dtype, precision=precision, device=device, offload=offload)
    if snapshot is not None:
        snapshot.write(model)
    return model


def load_transformer(
    flavour: Flavour,
    dtype: torch.dtype,
    *,
    precision: Precision = Precision.NO_CHANGE,
    device: torch.device = _CPU,
    training: bool = False,
    offload: Offload = Offload.NONE,
) -> LongCatImageTransformer2DModel:
    """Load the transformer, frozen, into main memory; its quantized layers go to ``device``. Raises ``FlavourError``.

    Other options: see ``longcat.model.quantized.quantize.quantize_base``.
    """
    stored = _dtype_to_load(flavour, "transformer", dtype, precision)
    model = _frozen(flavour, "transformer", LongCatImageTransformer2DModel, stored)
    quantize_base(model, precision, dtype=dtype, device=device, training=training, offload=offload)
    return model


def load_text_encoder(
    flavour: Flavour,
    dtype: torch.dtype,
    *,
    precision: Precision = Precision.NO_CHANGE,
    device: torch.device = _CPU,
    offload: Offload = Offload.NONE,
    writes: bool = True,
    sees: bool = False,
) -> Qwen2_5_VLForConditionalGeneration:
    """Load the text encoder, frozen, into main memory; its quantized layers go to ``device``. Raises ``FlavourError``.

    ``writes``: keep the language head, which writes text and encodes none. ``sees``: keep the vision tower, which captions
    and edits need, and prompts alone do not.
    """
    stored = _dtype_to_load(flavour, "text_encoder", dtype, precision)
    model = _frozen(flavour, "text_encoder", Qwen2_5_VLForConditionalGeneration, stored)
    if not sees:
        del model.model.visual
    if not writes:
        del model.lm_head
    quantize_base(model, precision, dtype=dtype, device=device, training=False, offload=offload)
    return model


def load_image_processor(flavour: Flavour) -> Qwen2VLImageProcessorPil:
    """Load the vision tower's image processor, with Pillow: torchvision is not needed. Raises ``FlavourError``."""
    with _file_errors(flavour):
        processor: Qwen2VLImageProcessorPil = Qwen2VLImageProcessorPil.from_pretrained(
            flavour.folder / "text_processor"
        )
    return processor


def load_vae(flavour: Flavour, dtype: torch.dtype) -> AutoencoderKL:
    """Load the VAE, frozen, channels last (convolutions a sixth faster), into main memory. Raises ``FlavourError``."""
    return _frozen(flavour, "vae", AutoencoderKL, dtype).to(memory_format=torch.channels_last)


def load_scheduler_config(flavour: Flavour) -> Mapping[str, Any]:
    """Load the scheduler's configuration, from which the noise levels are computed. Raises ``FlavourError``."""
    with _file_errors(flavour):
        config: Mapping[str, Any] = FlowMatchEulerDiscreteScheduler.load_config(flavour.folder, subfolder="scheduler")
    return config


def _frozen(flavour: Flavour, part: str, kind: Any, dtype: torch.dtype) -> Any:
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
        diffusers.utils.logging.disable_progress_bar()
    with _file_errors(flavour):
        # Weights are data: without the argument, a folder that has only pickled weights would have them unpickled.
        module = kind.from_pretrained(flavour.folder, subfolder=part, dtype=dtype, use_safetensors=True)
    return module.eval().requires_grad_(False)


def _dtype_to_load(flavour: Flavour, part: str, dtype: torch.dtype, precision: Precision) -> torch.dtype:
    """Return the dtype in which to load a component's weights.

    Weights that are loaded in the dtype of their files stay in the files until they are read, and take no memory of this
    process. Those of layers that are quantized are therefore converted layer by layer. Files of several dtypes are converted
    at once: the narrower of two would lose digits.
    """
    if precision is Precision.NO_CHANGE:
        return dtype
    names: set[str] = set()
    with _file_errors(flavour):
        for path in sorted((flavour.folder / part).glob("*.safetensors")):
            with safe_open(path, framework="pt") as stream:
                names |= {stream.get_slice(name).get_dtype() for name in list(stream.keys())}
    return _STORED.get(names.pop(), dtype) if len(names) == 1 else dtype


@contextlib.contextmanager
def _file_errors(flavour: Flavour) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise FlavourError(
            "flavour_damaged",
            "files in {folder} are missing or damaged: {reason}",
            remedy="download the model again",
            field="flavour",
            value=flavour.name,
            folder=str(flavour.folder),
            reason=reason,
        ) from error
