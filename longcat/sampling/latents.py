"""Latents: seeded noise, packing, position ids, and the VAE's shift and scale.

Shapes: B batch, C = 16 latent channels, H and W the image's size in px, h = H/16 and w = W/16 the token grid,
N = h*w image tokens of 4*C = 64 channels, L the model's prompt length in tokens.
Sources: diffusers ``LongCatImagePipeline`` and, for references, ``LongCatImageEditPipeline`` (``prepare_latents``,
``_pack_latents``, ``_unpack_latents``).
"""

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from longcat.errors import EngineError
from longcat.model.device.errors import first_that_fits
from longcat.model.shape import LATENT_CHANNELS, LATENT_PX, TOKEN_PX, WHOLE_DECODE_PIXELS

IMAGE, REFERENCE = 1, 2
"""Modalities of the tokens of the image under way and of the picture that it is made from."""


def seeded_noise(*, seed: int, height_px: int, width_px: int) -> Tensor:
    """Return packed standard normal noise (1, N, 64) in float32 on the CPU; a seed gives the same noise on every machine."""
    generator = torch.Generator("cpu").manual_seed(seed)
    shape = (1, LATENT_CHANNELS, height_px // LATENT_PX, width_px // LATENT_PX)
    return pack(torch.randn(shape, generator=generator, dtype=torch.float32))


def pack(latents_BCHW: Tensor) -> Tensor:
    """Pack (B, C, H/8, W/8) into tokens (B, N, 4*C), each a 2x2 square of latents."""
    b, c, h, w = latents_BCHW.shape
    squares = latents_BCHW.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return squares.reshape(b, (h // 2) * (w // 2), c * 4)


def unpack(tokens_BNC: Tensor, *, height_px: int, width_px: int) -> Tensor:
    """Unpack tokens (B, N, 4*C) to (B, C, H/8, W/8)."""
    b, _, c = tokens_BNC.shape
    h, w = height_px // TOKEN_PX, width_px // TOKEN_PX
    squares = tokens_BNC.view(b, h, w, c // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return squares.reshape(b, c // 4, h * 2, w * 2)


def text_ids(max_tokens: int) -> Tensor:
    """Return the positions of the prompt's rows, (L, 3) in float32: (0, i, i)."""
    ids = torch.zeros(max_tokens, 3)
    ids[:, 1:] = torch.arange(max_tokens, dtype=torch.float32)[:, None]
    return ids


def image_ids(*, height_px: int, width_px: int, max_tokens: int, modality: int = IMAGE) -> Tensor:
    """Return the positions of a picture's tokens, (N, 3): (modality, L + row, L + column), of an image or its reference.

    float32 is exact, and MPS needs it.
    """
    h, w = height_px // TOKEN_PX, width_px // TOKEN_PX
    ids = torch.full((h, w, 3), float(modality))
    ids[..., 1] = max_tokens + torch.arange(h, dtype=torch.float32)[:, None]
    ids[..., 2] = max_tokens + torch.arange(w, dtype=torch.float32)[None, :]
    return ids.reshape(h * w, 3)


def encode(vae: AutoencoderKL, images_BCHW: Tensor, *, tiled: bool = False) -> Tensor:
    """Encode images (B, 3, H, W) in -1..1 to normalised latents (B, C, H/8, W/8): (z - shift) * scale.

    ``tiled``: as for ``decode``.
    """
    images_BCHW = images_BCHW.to(vae.dtype)
    latents: Tensor = (vae.tiled_encode if tiled else vae.encode)(images_BCHW, return_dict=False)[0].mean
    normalised: Tensor = (latents - vae.config.shift_factor) * vae.config.scaling_factor
    return normalised


def decode(vae: AutoencoderKL, latents_BCHW: Tensor, *, tiled: bool = False) -> Tensor:
    """Decode normalised latents to images (B, 3, H, W), nominally in -1..1, in the VAE's dtype: z / scale + shift.

    ``tiled``: in tiles that overlap and are blended, with a fraction of the memory.
    """
    latents = latents_BCHW / vae.config.scaling_factor + vae.config.shift_factor
    latents = latents.to(vae.dtype).contiguous(memory_format=torch.channels_last)
    images: Tensor = (vae.tiled_decode if tiled else vae.decode)(latents, return_dict=False)[0]
    return images


def decode_any_size(vae: AutoencoderKL, latents_1CHW: Tensor) -> Tensor:
    """Decode one image to (3, H, W).

    On a GPU, an image of more than ``WHOLE_DECODE_PIXELS``, or one for which memory is not enough, is decoded in tiles that
    overlap, which changes the last bits of some pixels. Raises ``EngineError`` if numbers exceed the dtype's range.
    """
    *_, h, w = latents_1CHW.shape
    if latents_1CHW.device.type != "cpu" and h * w * LATENT_PX**2 > WHOLE_DECODE_PIXELS:
        image = decode(vae, latents_1CHW, tiled=True)[0]
    else:
        image = first_that_fits(lambda: decode(vae, latents_1CHW)[0], lambda: decode(vae, latents_1CHW, tiled=True)[0])
    if not torch.isfinite(image).all():
        raise EngineError(
            "image_not_finite",
            "the image is not finite in {dtype}",
            remedy="use --dtype bfloat16 or float32",
            dtype=str(image.dtype).removeprefix("torch."),
        )
    return image


def pixels(image_3HW: Tensor) -> np.ndarray:
    """Return an image in -1..1 as (H, W, 3) in uint8."""
    numbers = (image_3HW * 0.5 + 0.5).clamp(0, 1).permute(1, 2, 0).float().cpu().numpy()
    return np.asarray((numbers * 255).round().astype(np.uint8))
