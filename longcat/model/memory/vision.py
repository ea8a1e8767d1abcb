"""The bytes of the text encoder's vision tower, transformers' Qwen2.5-VL, from its config.json alone. No torch."""

from dataclasses import dataclass
from pathlib import Path

from longcat.model.memory.component_config import count_of, read_config


@dataclass(frozen=True, kw_only=True)
class VisionTower:
    """The sizes of a Qwen2_5_VisionTransformerPretrainedModel. It is never quantized."""

    width: int
    inner: int
    depth: int
    out_width: int
    patch_numbers: int
    """Numbers of one patch: its pixels, in three colours and two frames."""
    merged: int
    """Patches of an image token."""

    def weight_bytes(self, item_bytes: int) -> int:
        """Return the bytes of the weights."""
        h = self.width
        attention = _linear(h, 3 * h) + _linear(h, h)
        block = 2 * h + attention + 2 * _linear(h, self.inner) + _linear(self.inner, h)
        wide = self.merged * h
        merger = h + _linear(wide, wide) + _linear(wide, self.out_width)
        return (self.patch_numbers * h + self.depth * block + merger) * item_bytes

    def encoding_bytes(self, image_tokens: int, item_bytes: int) -> int:
        """Return the working memory of one picture, as for a prompt: five of its widths and of a feed-forward's."""
        return image_tokens * self.merged * 5 * (self.width + self.inner) * item_bytes


def read_vision_tower(folder: Path) -> VisionTower:
    """Read the vision tower's sizes. Raises ``FlavourError`` if the file is missing or not of that kind."""
    config = read_config(folder, "text_encoder")
    vision = config.get("vision_config", {})
    text_width = count_of(folder, config.get("text_config", config), "hidden_size", 3584)
    patch = count_of(folder, vision, "patch_size", 14)
    return VisionTower(
        width=count_of(folder, vision, "hidden_size", 1280),
        inner=count_of(folder, vision, "intermediate_size", 3420),
        depth=count_of(folder, vision, "depth", 32),
        out_width=count_of(folder, vision, "out_hidden_size", text_width),
        patch_numbers=3 * count_of(folder, vision, "temporal_patch_size", 2) * patch * patch,
        merged=count_of(folder, vision, "spatial_merge_size", 2) ** 2,
    )


def _linear(width_in: int, width_out: int) -> int:
    return width_in * width_out + width_out
