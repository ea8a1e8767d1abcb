"""The sizes of the embedded model: LongCat-Image's classes, small."""

import json
import random
from collections.abc import Iterable

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, LongCatImageTransformer2DModel
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from longcat.sampling.prompt import TEMPLATE_PREFIX
from recipes.embedded.captions import LANGUAGES, training_caption
from recipes.embedded.concepts import Concept

BODY_TOKENS = 32
"""Length of a prompt in tokens (the real model: 512)."""
VOCABULARY = 4096
TEXT_WIDTH = 256

_SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
_CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}{% else %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def train_tokenizer(concepts: list[Concept]) -> Qwen2Tokenizer:
    """Train a byte-level BPE tokenizer on the captions. Merges never join Chinese characters."""
    core = Tokenizer(models.BPE())
    core.normalizer = normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.Split(Regex(r"[\u4e00-\u9fff]"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(_SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        min_frequency=2,
    )
    core.train_from_iterator(_corpus(concepts), trainer)
    learned = json.loads(core.to_str())["model"]
    vocabulary = learned["vocab"] | {token: len(learned["vocab"]) + i for i, token in enumerate(_SPECIAL_TOKENS)}
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=[tuple(merge) for merge in learned["merges"]],
        unk_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens={"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
        model_max_length=2048,
    )
    tokenizer.add_tokens([AddedToken(token, special=True) for token in _SPECIAL_TOKENS])
    tokenizer.chat_template = _CHAT_TEMPLATE
    return tokenizer


def _corpus(concepts: list[Concept]) -> Iterable[str]:
    rng = random.Random(0)
    for index, concept in enumerate(concepts):
        for _ in range(4):
            for language in LANGUAGES:
                yield training_caption(concept, index, rng.randrange(10), language, rng)
        for name in (concept.name_en, *concept.synonyms_en):
            yield from [name, f" {name}"] * 3
            yield from (name.capitalize(), name.title(), f" {name.title()}", name.upper())
        for name in (concept.name_zh, *concept.synonyms_zh):
            yield from [name] * 6
        yield " ".join(concept.tags_en)
        yield from concept.tags_zh * 2
    yield from [TEMPLATE_PREFIX.replace("<|im_start|>", "").replace("<|im_end|>", "")] * 50


def build_text_encoder(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLForConditionalGeneration:
    """Build two layers of width 256, and the smallest vision tower that the class accepts (it is never used)."""
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in _SPECIAL_TOKENS}
    config = Qwen2_5_VLConfig(
        text_config=dict(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=768,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=4096,
            rope_parameters=dict(rope_type="default", rope_theta=10000.0, mrope_section=[8, 12, 12]),
            tie_word_embeddings=True,
            bos_token_id=ids["<|endoftext|>"],
            eos_token_id=ids["<|im_end|>"],
            pad_token_id=ids["<|endoftext|>"],
            use_sliding_window=False,
        ),
        vision_config=dict(
            depth=1,
            hidden_size=32,
            intermediate_size=64,
            num_heads=2,
            out_hidden_size=TEXT_WIDTH,
            patch_size=14,
            spatial_merge_size=2,
            temporal_patch_size=2,
            window_size=112,
            fullatt_block_indexes=[0],
        ),
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def build_vae() -> AutoencoderKL:
    """Build a VAE of 16 latent channels at 1/8 of the side; shift and scale are set from latent statistics later."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(24, 48, 96, 128),
        layers_per_block=1,
        act_fn="silu",
        latent_channels=16,
        norm_num_groups=4,
        sample_size=128,
        scaling_factor=1.0,
        shift_factor=0.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
        force_upcast=False,
    )


def build_transformer() -> LongCatImageTransformer2DModel:
    """Build 2 double and 4 single blocks, 4 heads of 64 (the real model: 10 and 20 blocks, 24 heads of 128)."""
    transformer = LongCatImageTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=64,
        num_attention_heads=4,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        axes_dims_rope=[8, 28, 28],
    )
    _initialise(transformer)
    return transformer


def _initialise(transformer: LongCatImageTransformer2DModel) -> None:
    """Initialise by Xavier, modulations and output to zero (adaLN-Zero, Peebles and Xie 2023, section 3.2)."""
    for module in transformer.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
    for name, module in transformer.named_modules():
        if (
            name.endswith(("norm.linear", "norm1.linear", "norm1_context.linear", "norm_out.linear"))
            or name == "proj_out"
        ):
            torch.nn.init.zeros_(module.weight)
            torch.nn.init.zeros_(module.bias)
    embedder = transformer.time_embed.timestep_embedder
    for linear in (embedder.linear_1, embedder.linear_2):
        torch.nn.init.normal_(linear.weight, std=0.02)


def build_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Build LongCat-Image's scheduler: dynamic shifting, mu from 0.5 at 256 image tokens to 1.15 at 4096."""
    return FlowMatchEulerDiscreteScheduler(
        num_train_timesteps=1000,
        shift=1.0,
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=1.15,
        base_image_seq_len=256,
        max_image_seq_len=4096,
    )
