"""The sizes and constants of LongCat-Image's transformer that no ``config.json`` holds, defined once. No torch.

The forward, the trainer's memory plan and the HTTP processes all read them. Sources: diffusers 0.42
``transformer_longcat_image.py`` (blocks) and ``LongCatImagePipeline`` (latents, prompt template).
"""

import math

LATENT_CHANNELS = 16
"""Channels of the VAE's latents."""
LATENT_PX = 8
"""Side of the square of pixels that one latent covers."""
PATCH_LATENTS = 2
"""Side of the square of latents that one token holds."""
TOKEN_PX = PATCH_LATENTS * LATENT_PX
"""Side of the square of pixels that one token covers."""
TOKEN_CHANNELS = PATCH_LATENTS**2 * LATENT_CHANNELS
"""Channels of a token as it enters and leaves the transformer."""

GRID_PX = 64
"""Widths and heights are multiples of it: the published models were trained on buckets with this step."""
PUBLISHED_PX = 512
"""Default sizes from here on are those of the published models; the embedded model's is smaller."""

MLP_RATIO = 4
"""Width of a feed-forward's hidden layer, in widths of a token."""
DOUBLE_BLOCK_MODULATIONS = 6
"""Vectors that modulate each of a double block's two streams: shift, scale and gate, of attention and feed-forward."""
SINGLE_BLOCK_MODULATIONS = 3
"""Vectors that modulate a single block: shift, scale and gate."""
OUTPUT_MODULATIONS = 2
"""Vectors that modulate the output layer: scale and shift."""

FLOAT16_MAX = 65504
"""Largest finite float16. Residuals of deep blocks exceed it, so that blocks clip their output to it."""

VISION_TOKEN_PX = 28
"""Side of the square of pixels that one of the vision tower's tokens covers: 2 x 2 patches of 14 px, in Qwen2.5-VL."""
MOST_RATIO = 8
"""Longer side by shorter side of the most oblong picture that is edited: of a strip, the text encoder sees few tokens."""

_SMALLER = 0.95
"""Factor by which an area shrinks until a canvas of it is small enough."""

TEMPLATE_PREFIX_TOKENS = 36
"""Tokens of the prompt template before the prompt, by LongCat-Image's tokenizer; the embedded model's makes 35 of it."""
POSITION_POLICY = "transformers-4"
"""Numbering of the prompt's positions (``longcat.sampling.encoding.text_encoder``), in cache keys and adapter manifests."""

WHOLE_DECODE_PIXELS = 1024 * 1088
"""Most pixels of an image that the VAE decodes as a whole on a GPU: 1.5 GiB; 2048 x 2048 px would take 6. Canvases of edits,
whose sides are rounded up, have a little more than 1024 x 1024."""
STEP_WIDTHS = 12
"""Widths of a row that are live at once in a step, at the feed-forward of a single block (``longcat.sampling.blocks``)."""
PROMPT_CACHE_BYTES = 256 * 2**20
"""Most that the service keeps of embeddings: about 70 prompts of LongCat-Image, 512 tokens of 3584 bfloat16 numbers each."""
SOURCE_CACHE_BYTES = 32 * 2**20
"""Most that the service keeps of the latents of pictures that requests give: 64 pictures of 1024 x 1024 px in bfloat16."""
MODULATION_CACHE_BYTES = 256 * 2**20
"""Most that ``longcat.sampling.forward`` keeps of modulations."""


def image_tokens(*, width_px: int, height_px: int) -> int:
    """Return the number of tokens of an image."""
    return (width_px // TOKEN_PX) * (height_px // TOKEN_PX)


def canvas_size(*, width_px: int, height_px: int, area_px: float) -> tuple[int, int]:
    """Return width and height at which a picture is edited: about ``area_px`` at its ratio, in whole tokens.

    Source: diffusers ``LongCatImageEditPipeline`` (``calculate_dimensions``).
    """
    width = math.sqrt(area_px * (width_px / height_px))
    sides = width, width / (width_px / height_px)
    width_px, height_px = (int(side if side % TOKEN_PX == 0 else (side // TOKEN_PX + 1) * TOKEN_PX) for side in sides)
    return width_px, height_px


def canvas_within(*, width_px: int, height_px: int, area_px: float, max_pixels: int) -> tuple[int, int]:
    """Return the size at which a picture is edited, with a smaller area where that has more than ``max_pixels``."""
    while math.prod(size := canvas_size(width_px=width_px, height_px=height_px, area_px=area_px)) > max_pixels:
        area_px *= _SMALLER
    return size


def is_oblong(*, width_px: int, height_px: int) -> bool:
    """Return True for a picture of which the text encoder would see too little to edit it."""
    return max(width_px, height_px) > MOST_RATIO * min(width_px, height_px)


def vision_tokens(*, width_px: int, height_px: int) -> int:
    """Return the tokens of a reference in the text encoder, which sees it at half its sides."""
    rows, columns = (max(1, round(side / 2 / VISION_TOKEN_PX)) for side in (height_px, width_px))
    return max(4, rows * columns)


def modulation_numbers(*, double_blocks: int, single_blocks: int, width: int) -> int:
    """Return how many numbers modulate all blocks and the output at one time; ``width`` is a token's."""
    vectors = 2 * DOUBLE_BLOCK_MODULATIONS * double_blocks + SINGLE_BLOCK_MODULATIONS * single_blocks
    return (vectors + OUTPUT_MODULATIONS) * width
