"""Models without weights: their structure on the meta device, to be filled from a snapshot."""

import torch
from accelerate import init_empty_weights
from diffusers import LongCatImageTransformer2DModel
from torch import nn
from transformers import AutoConfig, GenerationConfig, Qwen2_5_VLForConditionalGeneration
from transformers.initialization import no_init_weights

from longcat.model.flavour import Flavour


def transformer_structure(flavour: Flavour, dtype: torch.dtype) -> LongCatImageTransformer2DModel:
    """Return the transformer as ``longcat.model.loading.load_transformer`` does, without numbers."""
    config = LongCatImageTransformer2DModel.load_config(flavour.folder, subfolder="transformer")
    with init_empty_weights(include_buffers=False):
        model = LongCatImageTransformer2DModel.from_config(config)
    return _empty(model, dtype)


def text_encoder_structure(
    flavour: Flavour, dtype: torch.dtype, *, sees: bool = False
) -> Qwen2_5_VLForConditionalGeneration:
    """Return the text encoder as ``longcat.model.loading.load_text_encoder`` does, without numbers."""
    folder = flavour.folder / "text_encoder"
    config = AutoConfig.from_pretrained(folder, dtype=dtype)
    with init_empty_weights(include_buffers=False), no_init_weights():
        model = Qwen2_5_VLForConditionalGeneration(config)
    if (folder / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    if not sees:
        del model.model.visual
    return _empty(model, dtype)


def _empty(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model.eval().requires_grad_(False)
