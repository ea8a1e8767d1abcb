"""A tiny model that edits, in the layout of LongCat-Image-Edit: the embedded model with a vision tower of random weights."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from longcat.model.flavour import EMBEDDED_FOLDER
from longcat.model.shape import canvas_size
from longcat.sampling.encoding.source_picture import SourcePicture, fitted

PROMPT_TOKENS = 32


def write_edit_model(folder: Path, **settings: Any) -> Path:
    """Write the model; ``settings`` are those of its lithograph.json beside the embedded model's sizes."""
    ignored = shutil.ignore_patterns(
        "*.safetensors.*", "README.md", "adapters", "sizes.json", "quality.json", "turbo.json", "*.png"
    )
    shutil.copytree(EMBEDDED_FOLDER, folder, ignore=ignored)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "LongCatImageEditPipeline"}))
    sizes = {"max_prompt_tokens": PROMPT_TOKENS, "default_size_px": 128, "max_pixels": 65536}
    (folder / "lithograph.json").write_text(json.dumps(sizes | settings))
    config = AutoConfig.from_pretrained(EMBEDDED_FOLDER / "text_encoder")
    config.vision_config.depth = 2  # one block that attends within windows, one within the whole picture
    config.vision_config.fullatt_block_indexes = [1]
    config.vision_config.window_size = 56
    config.vision_config.initializer_range = 0.2
    torch.manual_seed(5)
    seeing = Qwen2_5_VLForConditionalGeneration(config)
    plain = Qwen2_5_VLForConditionalGeneration.from_pretrained(EMBEDDED_FOLDER / "text_encoder", dtype=torch.float32)
    seeing.model.language_model.load_state_dict(plain.model.language_model.state_dict())
    seeing.save_pretrained(folder / "text_encoder")
    Qwen2VLImageProcessorPil().save_pretrained(folder / "text_processor")
    return folder


def on_canvas(picture: Image.Image, *, area_px: int = 128 * 128) -> SourcePicture:
    """Return a picture at the canvas at which it is edited."""
    width, height = canvas_size(width_px=picture.width, height_px=picture.height, area_px=area_px)
    return fitted(picture, None, width_px=width, height_px=height, whole=True)


def picture(width: int = 200, height: int = 200, *, seed: int = 0) -> Image.Image:
    """Return a picture of soft coloured noise."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
