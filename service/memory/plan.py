"""The memory plan of serving: the bytes that a model, its slots and its requests take on a device. No torch.

Weights follow from the model's config.json (``longcat.model.memory.weights``). Step activations are those of
``longcat.sampling.blocks``, whose attention keeps no scores on a GPU.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from longcat.model.memory.autoencoder import Autoencoder, read_autoencoder
from longcat.model.memory.vision import VisionTower, read_vision_tower
from longcat.model.memory.weights import (
    ITEM_BYTES,
    TextEncoder,
    Transformer,
    read_text_encoder,
    read_transformer,
)
from longcat.model.precision import Offload, Precision
from longcat.model.shape import (
    MODULATION_CACHE_BYTES,
    PROMPT_CACHE_BYTES,
    SOURCE_CACHE_BYTES,
    STEP_WIDTHS,
    WHOLE_DECODE_PIXELS,
    image_tokens,
    modulation_numbers,
    vision_tokens,
)

_DECODE_SHARE = 1.25
"""Decoding as measured, of the tensors that are counted for it: normalizing copies what is channels last."""
_USUAL_STEPS = 50
"""Denoising steps of the images that a plan has room for."""


@dataclass(frozen=True, kw_only=True)
class ServingWorkload:
    """The settings that decide how much device memory serving takes."""

    folder: Path
    """The model's folder, with transformer, vae and text_encoder in it."""
    precision: Precision
    text_encoder_precision: Precision
    dtype: str
    """Compute type: float32, bfloat16 or float16."""
    offload: Offload
    slots: int
    """Adapter slots; 0 without adapters."""
    rank: int
    """Rank of the slots."""
    rows: int
    """Most rows of a forward at the default size; an image with guidance has two."""
    default_px: int
    """Width and height of the default size."""
    largest_pixels: int
    """Largest width times height of a request."""
    prompt_tokens: int
    """Tokens of a prompt as the model reads it, padding included."""
    rewrites: bool
    """True if requests may have their prompt rewritten."""
    edits: bool = False
    """True if every image is made from a reference, which the text encoder sees and whose tokens join the image's."""


@dataclass(frozen=True, kw_only=True)
class ServingPlan:
    """A workload's device memory, in bytes."""

    workload: ServingWorkload
    transformer: Transformer
    autoencoder: Autoencoder
    text_encoder: TextEncoder
    vision_tower: VisionTower

    @property
    def _item(self) -> int:
        return ITEM_BYTES[self.workload.dtype]

    @cached_property
    def transformer_bytes(self) -> int:
        """The transformer's weights."""
        model = self.transformer
        return model.top_bytes(self._item) + sum(model.block_bytes(self.workload.precision, self._item))

    @cached_property
    def text_encoder_bytes(self) -> int:
        """The text encoder's weights, without its language head."""
        return self.text_encoder.weight_bytes(self.workload.text_encoder_precision, self._item)

    @property
    def vision_bytes(self) -> int:
        """The vision tower's weights; a model that does not edit has it not loaded."""
        return self.vision_tower.weight_bytes(self._item) if self.workload.edits else 0

    @property
    def vae_bytes(self) -> int:
        """The VAE's weights."""
        return self.autoencoder.weight_bytes(self._item)

    @property
    def slot_bytes(self) -> int:
        """The slots, and the empty one, for the layers of blocks: allocated at the start."""
        return self._slots(sum(layer.width_in + layer.width_out for layer in self.transformer.targets()))

    @property
    def other_slot_bytes(self) -> int:
        """The same for all other layers: allocated once an adapter changes them."""
        every = sum(layer.width_in + layer.width_out for layer in self.transformer.linears())
        return self._slots(every) - self.slot_bytes

    def _slots(self, width: int) -> int:
        load = self.workload
        return (load.slots + 1) * load.rank * width * self._item if load.slots else 0

    @property
    def cache_bytes(self) -> int:
        """Cached embeddings of prompts, latents of pictures, and modulations."""
        return PROMPT_CACHE_BYTES + SOURCE_CACHE_BYTES + MODULATION_CACHE_BYTES

    def row_bytes(self, *, width_px: int, height_px: int) -> int:
        """Return the activations of one row of a forward, and its adapter's matrices of one layer, which are copied."""
        load = self.workload
        tokens = self._image_tokens(width_px, height_px) + self._prompt_rows(width_px, height_px)
        adapter = load.rank * max(layer.width_in + layer.width_out for layer in self.transformer.targets())
        return (STEP_WIDTHS * tokens * self.transformer.width + (adapter if load.slots else 0)) * self._item

    def image_bytes(self, *, width_px: int, height_px: int, steps: int, has_source: bool = False) -> int:
        """Return the bytes that an image keeps from its admission to its end: latents, contexts, modulations.

        Beside three tensors of latents and those of a reference, the three predictions that step reuse keeps; for an image
        that starts from a picture also the picture's latents, the noise and the mask.
        """
        model, own_tokens = self.transformer, image_tokens(width_px=width_px, height_px=height_px)
        blocks = {"double_blocks": model.double_blocks, "single_blocks": model.single_blocks}
        numbers = ((8 if has_source else 5) * own_tokens + self._image_tokens(width_px, height_px)) * model.channels
        numbers += 2 * self._prompt_rows(width_px, height_px) * (model.width + model.joint_width)
        return (numbers + steps * modulation_numbers(**blocks, width=model.width)) * self._item

    def _image_tokens(self, width_px: int, height_px: int) -> int:
        """Return the tokens of an image and of its reference, which is as large."""
        return (2 if self.workload.edits else 1) * image_tokens(width_px=width_px, height_px=height_px)

    def _prompt_rows(self, width_px: int, height_px: int) -> int:
        """Return the rows of a prompt, those of the picture that is seen with it and of its two marks included."""
        seen = 2 + vision_tokens(width_px=width_px, height_px=height_px) if self.workload.edits else 0
        return seen + self.workload.prompt_tokens

    @property
    def dequantized_bytes(self) -> int:
        """The largest weight of a block, which is dequantized while it is used."""
        if self.workload.precision is Precision.NO_CHANGE:
            return 0
        return (
            max(layer.width_in * layer.width_out for block in self.transformer.blocks for layer in block) * self._item
        )

    @property
    def step_bytes(self) -> int:
        """A forward of ``rows`` rows at the default size, or of one row at the largest size."""
        load, side = self.workload, int(self.workload.largest_pixels**0.5)
        rows = load.rows * self.row_bytes(width_px=load.default_px, height_px=load.default_px)
        return max(rows, self.row_bytes(width_px=side, height_px=side)) + self.dequantized_bytes

    @property
    def images_bytes(self) -> int:
        """The images of those rows, with guidance."""
        load = self.workload
        return -(-load.rows // 2) * self.image_bytes(
            width_px=load.default_px, height_px=load.default_px, steps=_USUAL_STEPS
        )

    @property
    def decode_bytes(self) -> int:
        """The working memory of decoding one image, or of encoding one; larger ones are divided into tiles."""
        pixels, vae = min(self.workload.largest_pixels, WHOLE_DECODE_PIXELS), self.autoencoder
        most = max(vae.decoding_bytes(pixels, self._item), vae.encoding_bytes(pixels, self._item))
        return int(most * _DECODE_SHARE)

    @property
    def encode_bytes(self) -> int:
        """The working memory of encoding a prompt, of a picture in the vision tower, or of rewriting a prompt."""
        load, side = self.workload, self.workload.default_px
        encoding = self.text_encoder.encoding_bytes(self._prompt_rows(side, side), self._item)
        if load.edits:
            seeing = self.vision_tower.encoding_bytes(vision_tokens(width_px=side, height_px=side), self._item)
            encoding = max(encoding, seeing)
        return encoding + (self.text_encoder.head_bytes(self._item) if load.rewrites else 0)

    @property
    def kept_bytes(self) -> int:
        """Slots and caches, which are on the device all the time."""
        return self.slot_bytes + self.other_slot_bytes + self.cache_bytes

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by part."""
        load = self.workload
        parts = {
            f"transformer, {load.precision}": self.transformer_bytes,
            f"text encoder, {load.text_encoder_precision}": self.text_encoder_bytes,
            "vision tower": self.vision_bytes,
            "VAE": self.vae_bytes,
            f"{load.slots} adapter slots of rank {load.rank}": self.slot_bytes,
            "slots of layers beside the blocks": self.other_slot_bytes,
            "cached prompts, pictures and modulations": self.cache_bytes,
            f"images of {load.rows} rows": self.images_bytes,
            f"a step of {load.rows} rows at {load.default_px} px": self.step_bytes,
            f"encoding {'a prompt with its picture' if load.edits else 'or rewriting a prompt'}": self.encode_bytes,
            "encoding or decoding an image": self.decode_bytes,
        }
        return {name: size for name, size in parts.items() if size}

    @property
    def peak_bytes(self) -> dict[str, int]:
        """Most bytes at once by phase: steps, prompts and decoding run at the same time unless weights are offloaded."""
        kept = self.kept_bytes + self.images_bytes
        step, encode, decode = self.step_bytes, self.encode_bytes, self.decode_bytes
        weights = self.transformer_bytes, self.text_encoder_bytes + self.vision_bytes, self.vae_bytes
        match self.workload.offload:
            case Offload.NONE:
                return {"serving": kept + sum(weights) + step + encode + decode}
            case Offload.MODEL:
                present = weights
            case Offload.GROUP:
                present = self._ungrouped_bytes, self._ungrouped_bytes, self._ungrouped_bytes
        works = {"steps": step, "prompts": encode, "decoding": decode}
        return {phase: kept + weight + work for (phase, work), weight in zip(works.items(), present, strict=True)}

    @property
    def _ungrouped_bytes(self) -> int:
        """Return the bytes on the device while linear layers are offloaded one by one: VAE, embedding, largest layer."""
        load, item = self.workload, self._item
        layers = [layer.stored(load.precision, item) for block in self.transformer.blocks for layer in block]
        embedding = self.text_encoder.vocabulary * self.text_encoder.width * item
        return self.vae_bytes + embedding + max(layers)

    @property
    def most_bytes(self) -> int:
        """The device memory that serving takes."""
        return max(self.peak_bytes.values())

    def free_bytes(self, usable_bytes: int) -> int:
        """Return the part of the device's usable memory that images and their steps may fill."""
        step_phase = next(iter(self.peak_bytes.values()))
        return usable_bytes - (step_phase - self.step_bytes - self.images_bytes) - self.dequantized_bytes


def plan(workload: ServingWorkload) -> ServingPlan:
    """Plan the memory of a workload. Raises ``FlavourError`` if the model's configuration cannot be read."""
    folder = workload.folder
    return ServingPlan(
        workload=workload,
        transformer=read_transformer(folder),
        autoencoder=read_autoencoder(folder),
        text_encoder=read_text_encoder(folder),
        vision_tower=read_vision_tower(folder),
    )
