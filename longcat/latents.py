"""Latents: seeded noise, packing, position ids, and the autoencoder's shift and scale.

Shapes: B batch, C = 16 latent channels, H and W the picture's size in px, h = H/16 and w = W/16 the token grid,
N = h*w image tokens of 4*C = 64 channels, L the model's prompt length in tokens.
Source: diffusers ``LongCatImagePipeline`` (``prepare_latents``, ``_pack_latents``, ``_unpack_latents``).
"""

import torch
from diffusers import AutoencoderKL
from torch import Tensor

CHANNELS = 16
VAE_SCALE = 8
TOKEN_PX = 16
"""Side of the square that one token covers: 8 px a latent, packed 2x2."""


def seeded_noise(*, seed: int, height_px: int, width_px: int) -> Tensor:
    """Packed standard normal noise (1, N, 64) in float32 on the CPU, the same on every machine for a seed."""
    generator = torch.Generator("cpu").manual_seed(seed)
    shape = (1, CHANNELS, height_px // VAE_SCALE, width_px // VAE_SCALE)
    return pack(torch.randn(shape, generator=generator, dtype=torch.float32))


def pack(latents_BCHW: Tensor) -> Tensor:
    """(B, C, H/8, W/8) to tokens (B, N, 4*C): each token holds a 2x2 square of latents."""
    b, c, h, w = latents_BCHW.shape
    squares = latents_BCHW.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return squares.reshape(b, (h // 2) * (w // 2), c * 4)


def unpack(tokens_BNC: Tensor, *, height_px: int, width_px: int) -> Tensor:
    """Tokens (B, N, 4*C) back to (B, C, H/8, W/8)."""
    b, _, c = tokens_BNC.shape
    h, w = height_px // TOKEN_PX, width_px // TOKEN_PX
    squares = tokens_BNC.view(b, h, w, c // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return squares.reshape(b, c // 4, h * 2, w * 2)


def text_ids(max_tokens: int) -> Tensor:
    """Positions of the prompt's rows, (L, 3) in float32: (0, i, i)."""
    ids = torch.zeros(max_tokens, 3)
    ids[:, 1:] = torch.arange(max_tokens, dtype=torch.float32)[:, None]
    return ids


def image_ids(*, height_px: int, width_px: int, max_tokens: int) -> Tensor:
    """Positions of the image's tokens, (N, 3) in float32: (1, L + row, L + column). float32 is exact, and MPS needs it."""
    h, w = height_px // TOKEN_PX, width_px // TOKEN_PX
    ids = torch.ones(h, w, 3)
    ids[..., 1] = max_tokens + torch.arange(h, dtype=torch.float32)[:, None]
    ids[..., 2] = max_tokens + torch.arange(w, dtype=torch.float32)[None, :]
    return ids.reshape(h * w, 3)


def encode(vae: AutoencoderKL, images_BCHW: Tensor) -> Tensor:
    """Images (B, 3, H, W) in -1..1 to normalised latents (B, C, H/8, W/8): (z - shift) * scale."""
    latents: Tensor = vae.encode(images_BCHW.to(vae.dtype)).latent_dist.mean
    normalised: Tensor = (latents - vae.config.shift_factor) * vae.config.scaling_factor
    return normalised


def decode(vae: AutoencoderKL, latents_BCHW: Tensor) -> Tensor:
    """Normalised latents to images (B, 3, H, W), nominally in -1..1, in the autoencoder's dtype: z / scale + shift."""
    latents = latents_BCHW / vae.config.scaling_factor + vae.config.shift_factor
    latents = latents.to(vae.dtype).contiguous(memory_format=torch.channels_last)
    images: Tensor = vae.decode(latents, return_dict=False)[0]
    return images
