"""The published models by name, and the settings of a model. No torch.

Defaults of editing: diffusers 0.42's ``LongCatImageEditPipeline.__call__`` (``num_inference_steps`` 50, ``guidance_scale``
4.5, no renormalization, no rewriting of prompts); those of Edit-Turbo: its model card (8 steps, guidance 1).
"""

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict

HUB_IDS = {
    "final": "meituan-longcat/LongCat-Image",
    "dev": "meituan-longcat/LongCat-Image-Dev",
    "edit": "meituan-longcat/LongCat-Image-Edit",
    "edit-turbo": "meituan-longcat/LongCat-Image-Edit-Turbo",
}
_EDIT_PIPELINE = "LongCatImageEditPipeline"


class ModelSettings(BaseModel):
    """Limits and defaults of a model. The defaults here are LongCat-Image's."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    max_prompt_tokens: int = 512
    """Most tokens of a prompt, without the template; without a reference picture, also the first position of the image."""
    default_size_px: int = 1024
    """Width and height when a request gives none. An edited picture has about this area, at its own ratio."""
    max_pixels: int = 2048 * 2048
    """Largest width times height of a request, unless the server is configured otherwise."""
    default_steps: int = 30
    """Denoising steps when a request gives none."""
    default_guidance_scale: float = 4.5
    """Classifier-free guidance when a request gives none."""
    default_cfg_renorm: bool = True
    """Renormalization of guidance when a request does not decide."""
    rewrites_prompts: bool = True
    """True if the text encoder is a language model that can rewrite prompts."""
    edits: bool = False
    """True if the model edits a picture, which its text encoder sees; by default as model_index.json names its pipeline."""


_EDIT = ModelSettings(default_steps=50, default_cfg_renorm=False, rewrites_prompts=False, edits=True)
_EDIT_TURBO = _EDIT.model_copy(update={"default_steps": 8, "default_guidance_scale": 1.0})


def published_settings(name: str, *, edits: bool = False) -> ModelSettings:
    """Return the settings of a flavour or hub id; of any other name, those of LongCat-Image or of LongCat-Image-Edit."""
    match next((flavour for flavour, hub_id in HUB_IDS.items() if name in (flavour, hub_id)), None):
        case "edit-turbo":
            return _EDIT_TURBO
        case "edit":
            return _EDIT
    return _EDIT if edits else ModelSettings()


def is_edit_pipeline(index: Path) -> bool:
    """Return True if a model_index.json names the pipeline of editing; a damaged one fails where the model is loaded."""
    try:
        content = json.loads(index.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("_class_name") == _EDIT_PIPELINE
