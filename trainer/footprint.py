"""How many bytes a model's parts take, from their config.json alone. No torch, and no weights are read.

Transformer: diffusers' ``transformer_longcat_image.py``. Autoencoder: its ``AutoencoderKL``. Text encoder: transformers'
Qwen2.5-VL. What is stored a weight: torchao's and quanto's own layouts, which a test holds.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longcat.errors import FlavourError
from longcat.precision import Precision
from trainer.activations import MLP_RATIO

_FLOAT32 = 4
_INT4_GROUP = 128
"""Weights that share a scale and a shift."""
_TEMPLATE_ROWS = 37
"""The prompt template's prefix and one pad row."""


@dataclass(frozen=True)
class Linear:
    """A linear layer with a bias."""

    name: str
    width_in: int
    width_out: int

    def stored(self, precision: Precision, item_bytes: int) -> int:
        """Bytes of its weight and bias as the precision stores them."""
        weights = self.width_in * self.width_out
        bias = self.width_out * item_bytes
        match precision:
            case Precision.NO_CHANGE:
                return weights * item_bytes + bias
            case Precision.INT8_QUANTO | Precision.FP8_QUANTO:
                return weights + self.width_out * item_bytes + bias
            case Precision.INT4_QUANTO:
                return weights // 2 + 2 * (weights // _INT4_GROUP) * item_bytes + bias
            case Precision.INT8_TORCHAO:
                return weights + self.width_out * (_FLOAT32 + 1) + bias
            case Precision.FP8_TORCHAO:
                return weights + self.width_out * _FLOAT32 + bias


@dataclass(frozen=True, kw_only=True)
class Transformer:
    """A LongCatImageTransformer2DModel's shape."""

    width: int
    heads: int
    double_blocks: int
    single_blocks: int
    joint_width: int
    channels: int

    @property
    def blocks(self) -> Iterator[tuple[Linear, ...]]:
        """The linear layers of each block, all of which precision shrinks."""
        d, inner = self.width, MLP_RATIO * self.width
        for index in range(self.double_blocks):
            name = f"transformer_blocks.{index}."
            square = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj",
                      "attn.to_out.0", "attn.to_add_out")  # fmt: skip
            yield (
                *(Linear(name + layer, d, 6 * d) for layer in ("norm1.linear", "norm1_context.linear")),
                *(Linear(name + layer, d, d) for layer in square),
                *(Linear(f"{name}{part}.net.0.proj", d, inner) for part in ("ff", "ff_context")),
                *(Linear(f"{name}{part}.net.2", inner, d) for part in ("ff", "ff_context")),
            )
        for index in range(self.single_blocks):
            name = f"single_transformer_blocks.{index}."
            yield (
                Linear(name + "norm.linear", d, 3 * d),
                Linear(name + "proj_mlp", d, inner),
                Linear(name + "proj_out", d + inner, d),
                *(Linear(name + layer, d, d) for layer in ("attn.to_q", "attn.to_k", "attn.to_v")),
            )

    def top_bytes(self, item_bytes: int) -> int:
        """Outside of blocks, and the normalizations of heads: never shrunk."""
        d = self.width
        layers = (self.channels, d), (self.joint_width, d), (256, d), (d, d), (d, 2 * d), (d, self.channels)
        norms = (4 * self.double_blocks + 2 * self.single_blocks) * (d // self.heads)
        return (sum(a * b + b for a, b in layers) + norms) * item_bytes

    def block_bytes(self, precision: Precision, item_bytes: int) -> list[int]:
        """Of each block."""
        return [sum(layer.stored(precision, item_bytes) for layer in block) for block in self.blocks]

    def targets(self) -> list[Linear]:
        """What an adapter may change: as ``longcat.lora.lora_targets``."""
        return [layer for block in self.blocks for layer in block if ".norm" not in layer.name]


def read_transformer(folder: Path) -> Transformer:
    """Raises ``FlavourError`` if the file is missing or says something else."""
    said = _config(folder, "transformer")
    heads = _int(folder, said, "num_attention_heads", 24)
    return Transformer(
        width=heads * _int(folder, said, "attention_head_dim", 128),
        heads=heads,
        double_blocks=_int(folder, said, "num_layers", 19),
        single_blocks=_int(folder, said, "num_single_layers", 38),
        joint_width=_int(folder, said, "joint_attention_dim", 3584),
        channels=_int(folder, said, "in_channels", 64),
    )


@dataclass(frozen=True, kw_only=True)
class Autoencoder:
    """An AutoencoderKL's shape."""

    channels: Sequence[int]
    """Of each level, the picture's own first."""
    layers: int
    latents: int
    attends: bool

    def weight_bytes(self, item_bytes: int) -> int:
        """Of encoder and decoder."""
        widths, last = list(self.channels), self.channels[-1]
        down = sum(
            _resnet(before, width) + (self.layers - 1) * _resnet(width, width)
            for before, width in zip([widths[0], *widths], widths, strict=False)
        )
        up = sum(
            _resnet(before, width) + self.layers * _resnet(width, width)
            for before, width in zip([last, *reversed(widths)], reversed(widths), strict=False)
        )
        resampled = sum(_conv(width, width) for width in widths[:-1]) + sum(_conv(width, width) for width in widths[1:])
        middle = 2 * _resnet(last, last) + (2 * last + 4 * (last * last + last) if self.attends else 0)
        ends = _conv(3, widths[0]) + 2 * last + _conv(last, 2 * self.latents)
        ends += _conv(self.latents, last) + 2 * widths[0] + _conv(widths[0], 3)
        return (down + up + resampled + 2 * middle + ends) * item_bytes

    def encoding_bytes(self, pixels: int, item_bytes: int) -> int:
        """At the picture's own size four tensors of the first level's channels are there at once, and the picture."""
        return pixels * (4 * self.channels[0] * item_bytes + 3 * _FLOAT32)

    def decoding_bytes(self, pixels: int, item_bytes: int) -> int:
        """Likewise three, of the channels with which the last level begins: those of the one before."""
        return pixels * (3 * max(self.channels[:2]) * item_bytes + 3 * _FLOAT32)


def read_autoencoder(folder: Path) -> Autoencoder:
    """Raises ``FlavourError`` if the file is missing or says something else."""
    said = _config(folder, "vae")
    channels = said.get("block_out_channels", [])
    if not channels or not all(isinstance(width, int) for width in channels):
        raise FlavourError(f"{folder}/vae/config.json: block_out_channels is {channels}; give the widths of its levels")
    return Autoencoder(
        channels=channels,
        layers=_int(folder, said, "layers_per_block", 1),
        latents=_int(folder, said, "latent_channels", 4),
        attends=bool(said.get("mid_block_add_attention", True)),
    )


@dataclass(frozen=True, kw_only=True)
class TextEncoder:
    """A Qwen2_5_VLForConditionalGeneration's shape: language model, eyes and head are all loaded."""

    width: int
    inner: int
    layers: int
    kv_width: int
    vocabulary: int
    has_head: bool
    """Whether the output layer has weights of its own."""
    eyes: int
    """Parameters of the vision model."""

    def weight_bytes(self, precision: Precision, item_bytes: int) -> int:
        """Layers of the language model shrink, the rest does not."""
        h = self.width
        per_layer = (
            *(Linear("", h, width) for width in (h, self.kv_width, self.kv_width)),
            *(Linear("", a, b) for a, b in ((h, h), (h, self.inner), (h, self.inner), (self.inner, h))),
        )
        shrunk = sum(layer.stored(precision, item_bytes) for layer in per_layer)
        shrunk -= (2 * h + 2 * self.inner) * item_bytes  # the last four have no bias
        norms = 2 * h
        kept = (2 if self.has_head else 1) * self.vocabulary * h + h + self.eyes + self.layers * norms
        return self.layers * shrunk + kept * item_bytes

    def encoding_bytes(self, prompt_tokens: int, item_bytes: int) -> int:
        """Of one prompt: every layer's output is kept, and one feed-forward is at work."""
        rows = prompt_tokens + _TEMPLATE_ROWS
        return (rows * ((self.layers + 1) * self.width + 3 * self.inner) + self.vocabulary) * item_bytes


def read_text_encoder(folder: Path) -> TextEncoder:
    """Raises ``FlavourError`` if the file is missing or says something else. Knows the flat layout of transformers 4."""
    said = _config(folder, "text_encoder")
    text = said.get("text_config", said)
    heads = _int(folder, text, "num_attention_heads", 28)
    width = _int(folder, text, "hidden_size", 3584)
    return TextEncoder(
        width=width,
        inner=_int(folder, text, "intermediate_size", 18944),
        layers=_int(folder, text, "num_hidden_layers", 28),
        kv_width=_int(folder, text, "num_key_value_heads", heads) * (width // heads),
        vocabulary=_int(folder, text, "vocab_size", 152064),
        has_head=not said.get("tie_word_embeddings", False),
        eyes=_eyes(folder, said.get("vision_config", {}), width),
    )


def _eyes(folder: Path, said: dict[str, Any], text_width: int) -> int:
    h = _int(folder, said, "hidden_size", 1280)
    inner = _int(folder, said, "intermediate_size", 3420)
    patch = _int(folder, said, "patch_size", 14) ** 2 * _int(folder, said, "temporal_patch_size", 2)
    merged = h * _int(folder, said, "spatial_merge_size", 2) ** 2
    block = 4 * h * h + 4 * h + 3 * h * inner + 2 * inner + h + 2 * h
    merger = h + merged * merged + merged + merged * text_width + text_width
    return 3 * patch * h + _int(folder, said, "depth", 32) * block + merger


def _config(folder: Path, part: str) -> dict[str, Any]:
    path = folder / part / "config.json"
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FlavourError(f"{path} cannot be read: {error}; give a model's whole directory") from error
    if not isinstance(said, dict):
        raise FlavourError(f"{path} holds no object; give a model's whole directory")
    return said


def _int(folder: Path, said: dict[str, Any], key: str, default: int) -> int:
    value = said.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise FlavourError(f"{folder}: {key} is {value!r} in a config.json; it has to be a whole number")
    return value


def _conv(width_in: int, width_out: int, side: int = 3) -> int:
    return side * side * width_in * width_out + width_out


def _resnet(width_in: int, width_out: int) -> int:
    shortcut = _conv(width_in, width_out, 1) if width_in != width_out else 0
    return 2 * width_in + _conv(width_in, width_out) + 2 * width_out + _conv(width_out, width_out) + shortcut
