"""Assembly of the parts, in bfloat16, into a directory for ``LongCatImagePipeline.from_pretrained``."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, LongCatImagePipeline, LongCatImageTransformer2DModel
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from recipes.embedded.architecture import BODY_TOKENS, build_scheduler

SETTINGS = {
    "max_prompt_tokens": BODY_TOKENS,
    "default_size_px": 128,
    "max_pixels": 256 * 256,
    "default_steps": 16,
    "default_guidance_scale": 2.0,
    "rewrites_prompts": False,
}
"""Settings without a place in diffusers' layout; ``longcat.model.flavour`` reads them from ``lithograph.json``."""


def assemble(folder: Path, output: Path) -> None:
    """Write the model into ``output``; the model card and the evaluation there stay."""
    statistics = torch.load(folder / "latents.pt", weights_only=True)
    vae = AutoencoderKL.from_pretrained(folder / "vae")
    vae.register_to_config(shift_factor=statistics["shift"], scaling_factor=statistics["scale"])
    tokenizer = Qwen2Tokenizer.from_pretrained(folder / "tokenizer")
    pipeline = LongCatImagePipeline(
        scheduler=build_scheduler(),
        vae=vae,
        text_encoder=Qwen2_5_VLForConditionalGeneration.from_pretrained(folder / "text_encoder", dtype=torch.float32),
        tokenizer=tokenizer,
        text_processor=tokenizer,
        transformer=LongCatImageTransformer2DModel.from_pretrained(folder / "transformer"),
    )
    pipeline.to(torch.bfloat16).save_pretrained(output)
    (output / "lithograph.json").write_text(json.dumps(SETTINGS, indent=2) + "\n", encoding="utf-8")
