"""The workload of a training: the settings that decide how much memory it takes. No torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from longcat.model.precision import Precision
from longcat.model.shape import image_tokens, vision_tokens
from trainer.config.simpletuner.lycoris import LycorisConfig


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The settings that decide how much memory a training takes."""

    flavour_folder: Path
    """The model's folder, with transformer, vae and text_encoder in it."""
    precision: Precision | Literal["auto"]
    """Precision of the base; ``choose`` replaces ``auto``."""
    text_encoder_precision: Precision | Literal["auto"]
    dtype: str
    """Compute type: float32, bfloat16 or float16."""
    lora_rank: int
    lora_targets: str | tuple[str, ...]
    """attention, official, all-linear, whole-transformer, or endings of names."""
    optimizer: str
    """adamw, adamw8bit, adamw-schedulefree or prodigy."""
    ema: bool
    batch: int
    """Pictures per forward."""
    width_px: int
    """Width of the largest pictures; height_px is theirs too."""
    height_px: int
    prompt_tokens: int
    """Tokens of a prompt as the model reads it, padding included."""
    checkpointing: int | Literal["auto"] | None
    """Every n-th block is checkpointed: 0 or None is none, 1 is all."""
    offload: bool
    """True if the base is kept in main memory, except for a group of blocks or a layer at a time."""
    validation: bool
    """True if validation pictures are generated, at width_px x height_px, while the adapter is in memory."""
    device: str = "cuda"
    """cpu, cuda or mps. A CPU holds the base unquantized while it loads."""
    offload_type: str = "block_level"
    """block_level or leaf_level."""
    blocks_per_group: int = 1
    """Blocks that are on the device together, with block_level."""
    lora_dropout: float = 0.1
    use_dora: bool = False
    lycoris: LycorisConfig | None = None
    """LoKr or LoHa in the place of LoRA."""
    parts: int = 1
    """Processes that the base is split over."""
    vae_batch: int = 4
    """Pictures encoded at once while latents are cached."""
    prior: bool = False
    """True if a step may need the base's own prediction as its target."""
    text_workers: int = 1
    """Captions embedded at once: on a CPU, the number of threads."""
    edits: bool = False
    """True if every picture has a reference, which the text encoder sees and whose tokens join the picture's."""

    @property
    def image_tokens(self) -> int:
        """Tokens of one picture, and of its reference, which is as large."""
        return (2 if self.edits else 1) * image_tokens(width_px=self.width_px, height_px=self.height_px)

    @property
    def seen_tokens(self) -> int:
        """Tokens of the reference in the text encoder; 0 without one."""
        return vision_tokens(width_px=self.width_px, height_px=self.height_px) if self.edits else 0

    @property
    def prompt_rows(self) -> int:
        """Rows of a prompt, those of the reference that is seen with it and of its two marks included."""
        return self.prompt_tokens + (self.seen_tokens + 2 if self.edits else 0)

    @property
    def checkpointing_words(self) -> str:
        """The checkpointing setting in words."""
        if not self.checkpointing:
            return "no checkpointing"
        return "checkpointing " + ("every block" if self.checkpointing == 1 else f"1 block in {self.checkpointing}")
