"""Images that start from a picture: its latents at a level of noise, a mask that keeps parts of it, and a feathered edge.

The method is that of diffusers' ``FluxImg2ImgPipeline`` and ``FluxInpaintPipeline``: the picture's latents are noised to
the first level of the steps that ``strength`` keeps, and after each step the latents that the mask keeps are the picture's
own at the step's next level, with the same noise. At the end the picture's pixels replace those outside the mask.

Shapes: N image tokens, C = 64, H and W the image's size in px.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from longcat.model.device.errors import first_that_fits
from longcat.model.device.threads import one_core
from longcat.model.shape import LATENT_CHANNELS, LATENT_PX, WHOLE_DECODE_PIXELS
from longcat.sampling import latents
from longcat.sampling.encoding.source_picture import SourcePicture

FEATHER_PX = 8
"""Width of the edge, outside the mask, in which the picture turns into the image."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Area:
    """The part of a picture that may change."""

    change_1NC: Tensor
    """1 for latents that may change, 0 for those that stay."""
    pixels_HW3: np.ndarray
    """The picture, in uint8."""
    weights_HW1: np.ndarray
    """Weights of the image's pixels in float32: 1 under the mask, 0 beyond its edge."""

    def paste(self, image_HW3: np.ndarray) -> np.ndarray:
        """Return an image's pixels, in uint8, with those of the picture where it stays."""
        mixed = self.weights_HW1 * image_HW3 + (1 - self.weights_HW1) * self.pixels_HW3
        return np.asarray(mixed.round().astype(np.uint8))


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedSource:
    """An encoded picture, from which any number of images start."""

    clean_1NC: Tensor
    strength: float
    """Part of the steps that are made, over 0; 1 starts from noise alone."""
    area: Area | None = None
    """None: all of the picture may change."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Start:
    """The picture that one image starts from, and that image's noise."""

    source: EncodedSource
    noise_1NC: Tensor

    def at(self, sigma: Tensor) -> Tensor:
        """Return the picture's latents at a noise level, (1, N, C) in the noise's dtype; ``sigma`` is 0-dim."""
        noisy = (1 - sigma) * self.source.clean_1NC.float() + sigma * self.noise_1NC.float()
        return noisy.to(self.noise_1NC.dtype)

    def blend(self, latents_1NC: Tensor, sigma: Tensor) -> Tensor:
        """Return an image's latents at a noise level, with those of the picture where it stays."""
        if self.source.area is None:
            return latents_1NC
        change = self.source.area.change_1NC
        return change * latents_1NC + (1 - change) * self.at(sigma)


@torch.no_grad()
def encode_picture_latents(
    vae: AutoencoderKL, pixels_HW3: np.ndarray, *, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Encode a picture, in uint8, to packed latents (1, N, C) on the device: the mode of their distribution.

    On a GPU, a picture of more than ``WHOLE_DECODE_PIXELS`` is encoded in tiles, as it is decoded.
    """
    pixels = torch.from_numpy(np.array(pixels_HW3)).permute(2, 0, 1)[None].to(device)
    image_13HW = (pixels.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
    with one_core(device):
        if device.type != "cpu" and pixels_HW3.shape[0] * pixels_HW3.shape[1] > WHOLE_DECODE_PIXELS:
            encoded = latents.encode(vae, image_13HW, tiled=True)
        else:
            encoded = first_that_fits(
                lambda: latents.encode(vae, image_13HW), lambda: latents.encode(vae, image_13HW, tiled=True)
            )
    return latents.pack(encoded.contiguous()).to(dtype)


def area_of(picture: SourcePicture, *, device: torch.device, dtype: torch.dtype) -> Area | None:
    """Return the part of a picture that may change; None if it is all of it.

    A latent may change if its square has a pixel that may, as much as that one.
    """
    if picture.mask_array is None:
        return None
    mask_11HW = torch.from_numpy(np.array(picture.mask_array)).float()[None, None] / 255
    change_11hw = F.max_pool2d(mask_11HW, LATENT_PX)
    change_1NC = latents.pack(change_11hw.expand(-1, LATENT_CHANNELS, -1, -1).contiguous())
    return Area(
        change_1NC=change_1NC.to(device, dtype),
        pixels_HW3=picture.pixel_array,
        weights_HW1=_feathered(mask_11HW)[0, 0, :, :, None].numpy(),
    )


def _feathered(mask_11HW: Tensor) -> Tensor:
    """Return a mask with an edge that falls to 0 over ``FEATHER_PX``: widened by half of it, then averaged over the same."""
    half = FEATHER_PX // 2
    side = 2 * half + 1
    for shape, padding in (((side, 1), (half, 0)), ((1, side), (0, half))):
        mask_11HW = F.max_pool2d(mask_11HW, shape, stride=1, padding=padding)
    for shape, padding in (((side, 1), (half, 0)), ((1, side), (0, half))):
        mask_11HW = F.avg_pool2d(mask_11HW, shape, stride=1, padding=padding, count_include_pad=False)
    return mask_11HW
