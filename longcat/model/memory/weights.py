"""The bytes of the transformer and the text encoder, from their config.json alone. No torch, and no weights are read.

Transformer: diffusers' ``transformer_longcat_image.py``. Text encoder: transformers' Qwen2.5-VL.
Bytes per weight: the layouts of torchao and quanto, which a test checks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from longcat.model.memory.component_config import count_of, read_config
from longcat.model.precision import Precision
from longcat.model.shape import (
    DOUBLE_BLOCK_MODULATIONS,
    MLP_RATIO,
    OUTPUT_MODULATIONS,
    SINGLE_BLOCK_MODULATIONS,
    TEMPLATE_PREFIX_TOKENS,
    TOKEN_CHANNELS,
)

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a number by compute type."""
_FLOAT32 = 4
_INT4_GROUP = 128
"""Weights that share a scale and a zero point."""


@dataclass(frozen=True)
class Linear:
    """A linear layer with a bias."""

    name: str
    width_in: int
    width_out: int

    def stored(self, precision: Precision, item_bytes: int) -> int:
        """Return the bytes of its weight and bias as the precision stores them."""
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
    """The sizes of a LongCatImageTransformer2DModel."""

    width: int
    heads: int
    double_blocks: int
    single_blocks: int
    joint_width: int
    channels: int

    @property
    def blocks(self) -> Iterator[tuple[Linear, ...]]:
        """Yield the linear layers of each block; the base precision applies to all of them."""
        d, inner = self.width, MLP_RATIO * self.width
        for index in range(self.double_blocks):
            name = f"transformer_blocks.{index}."
            square = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj",
                      "attn.to_out.0", "attn.to_add_out")  # fmt: skip
            yield (
                *(
                    Linear(f"{name}{norm}.linear", d, DOUBLE_BLOCK_MODULATIONS * d)
                    for norm in ("norm1", "norm1_context")
                ),
                *(Linear(name + layer, d, d) for layer in square),
                *(Linear(f"{name}{part}.net.0.proj", d, inner) for part in ("ff", "ff_context")),
                *(Linear(f"{name}{part}.net.2", inner, d) for part in ("ff", "ff_context")),
            )
        for index in range(self.single_blocks):
            name = f"single_transformer_blocks.{index}."
            yield (
                Linear(name + "norm.linear", d, SINGLE_BLOCK_MODULATIONS * d),
                Linear(name + "proj_mlp", d, inner),
                Linear(name + "proj_out", d + inner, d),
                *(Linear(name + layer, d, d) for layer in ("attn.to_q", "attn.to_k", "attn.to_v")),
            )

    def embedders(self, image_tokens: int, prompt_tokens: int) -> list[tuple[Linear, int]]:
        """Return the linear layers outside of blocks, each with the number of its input's rows for one picture."""
        d, time = self.width, "time_embed.timestep_embedder."
        return [
            (Linear("x_embedder", self.channels, d), image_tokens),
            (Linear("context_embedder", self.joint_width, d), prompt_tokens),
            (Linear(time + "linear_1", 256, d), 1),
            (Linear(time + "linear_2", d, d), 1),
            (Linear("norm_out.linear", d, OUTPUT_MODULATIONS * d), 1),
            (Linear("proj_out", d, self.channels), image_tokens),
        ]

    def modulations(self) -> list[tuple[Linear, int]]:
        """Return the modulations of blocks, each with the number of its input's rows for one picture."""
        return [(layer, 1) for block in self.blocks for layer in block if ".norm" in layer.name]

    def linears(self) -> list[Linear]:
        """Return all linear layers, as ``longcat.adapter.modules.linear_modules`` does."""
        return [*(layer for layer, _ in self.embedders(1, 1)), *(layer for block in self.blocks for layer in block)]

    def top_bytes(self, item_bytes: int) -> int:
        """Return the bytes of weights that are never quantized: those outside of blocks, and the norms of heads."""
        norms = (4 * self.double_blocks + 2 * self.single_blocks) * (self.width // self.heads)
        numbers = sum((layer.width_in + 1) * layer.width_out for layer, _ in self.embedders(1, 1))
        return (numbers + norms) * item_bytes

    def block_bytes(self, precision: Precision, item_bytes: int) -> list[int]:
        """Return the bytes of each block."""
        return [sum(layer.stored(precision, item_bytes) for layer in block) for block in self.blocks]

    def targets(self) -> list[Linear]:
        """Return the blocks' own linear layers, as ``longcat.adapter.modules.lora_targets`` does."""
        return [layer for block in self.blocks for layer in block if ".norm" not in layer.name]


def read_transformer(folder: Path) -> Transformer:
    """Read the transformer's sizes. Raises ``FlavourError`` if the file is missing or not of that kind."""
    config = read_config(folder, "transformer")
    heads = count_of(folder, config, "num_attention_heads", 24)
    return Transformer(
        width=heads * count_of(folder, config, "attention_head_dim", 128),
        heads=heads,
        double_blocks=count_of(folder, config, "num_layers", 19),
        single_blocks=count_of(folder, config, "num_single_layers", 38),
        joint_width=count_of(folder, config, "joint_attention_dim", 3584),
        channels=count_of(folder, config, "in_channels", TOKEN_CHANNELS),
    )


@dataclass(frozen=True, kw_only=True)
class TextEncoder:
    """The sizes of the language model of a Qwen2_5_VLForConditionalGeneration."""

    width: int
    inner: int
    layers: int
    kv_width: int
    vocabulary: int

    def weight_bytes(self, precision: Precision, item_bytes: int) -> int:
        """Return the bytes of the weights that encode prompts: all but the language head."""
        h = self.width
        per_layer = (
            *(Linear("", h, width) for width in (h, self.kv_width, self.kv_width)),
            *(Linear("", a, b) for a, b in ((h, h), (h, self.inner), (h, self.inner), (self.inner, h))),
        )
        quantized = sum(layer.stored(precision, item_bytes) for layer in per_layer)
        quantized -= (2 * h + 2 * self.inner) * item_bytes  # the last four have no bias
        norms = 2 * h
        kept = self.vocabulary * h + h + self.layers * norms
        return self.layers * quantized + kept * item_bytes

    def encoding_bytes(self, prompt_tokens: int, item_bytes: int) -> int:
        """Return the working memory of one prompt: as measured, five of its widths and five of a feed-forward."""
        rows = TEMPLATE_PREFIX_TOKENS + prompt_tokens + 1  # one pad row stands for all
        return rows * 5 * (self.width + self.inner) * item_bytes

    def head_bytes(self, item_bytes: int) -> int:
        """Return the bytes of the language head."""
        return self.vocabulary * self.width * item_bytes


def read_text_encoder(folder: Path) -> TextEncoder:
    """Read the text encoder's sizes, also from the flat layout of transformers 4.

    Raises ``FlavourError`` if the file is missing or not of that kind.
    """
    config = read_config(folder, "text_encoder")
    text = config.get("text_config", config)
    heads = count_of(folder, text, "num_attention_heads", 28)
    width = count_of(folder, text, "hidden_size", 3584)
    return TextEncoder(
        width=width,
        inner=count_of(folder, text, "intermediate_size", 18944),
        layers=count_of(folder, text, "num_hidden_layers", 28),
        kv_width=count_of(folder, text, "num_key_value_heads", heads) * (width // heads),
        vocabulary=count_of(folder, text, "vocab_size", 152064),
    )
