"""Pictures on their way from noise: start them, advance any number of the same size by one step, decode.

Service and trainer sample through this module, so that a validation picture is the picture that is served. Every picture
has its own schedule, guidance, seed and adapters; on a CPU it comes out bitwise the same whoever shares its forward.

Shapes: B pictures, R rows of a forward (one a picture, two with guidance), N image tokens, C = 64, L prompt rows, D the
transformer's width, J the text encoder's, M numbers of modulation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from longcat import flow, latents
from longcat.blocks import Rope
from longcat.errors import EngineError
from longcat.forward import Forward
from longcat.slots import AdapterSlots, SlotUse
from longcat.threads import one_core


class Base(Protocol):
    """What a picture needs to know of the model that draws it (``longcat.loading.Components`` does)."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""

    @property
    def scheduler_config(self) -> Mapping[str, Any]:
        """What the noise levels follow from."""


@dataclass(kw_only=True)
class Denoising:
    """One picture on its way. ``advance`` moves ``latents_1NC``, ``clean_1NC`` and ``step``; the rest stays."""

    height_px: int
    width_px: int
    context_1LD: Tensor
    negative_context_1LD: Tensor | None
    """None without guidance."""
    guidance_scale: float
    cfg_renorm: bool
    sigmas: Tensor
    """(steps + 1,) in float32 on the CPU, the last 0."""
    modulations: tuple[Tensor, ...]
    """One (M,) a step."""
    rope: Rope
    latents_1NC: Tensor
    clean_1NC: Tensor
    """What the last step took the finished picture to be."""
    adapters: tuple[SlotUse, ...] = ()
    step: int = 0

    @property
    def steps(self) -> int:
        """Steps in all."""
        return len(self.modulations)

    @property
    def is_done(self) -> bool:
        """Whether all steps are made."""
        return self.step == self.steps

    @property
    def contexts(self) -> tuple[Tensor, ...]:
        """One a row of the forward: conditional, then unconditional."""
        return (
            (self.context_1LD,) if self.negative_context_1LD is None else (self.context_1LD, self.negative_context_1LD)
        )


def start(
    model: Base,
    forward: Forward,
    *,
    embeds_1LJ: Tensor,
    negative_embeds_1LJ: Tensor | None,
    height_px: int,
    width_px: int,
    steps: int,
    guidance_scale: float,
    cfg_renorm: bool,
    seed: int,
) -> Denoising:
    """A picture that is still noise. Guidance needs a scale over 1 and negative embeddings."""
    noise = latents.seeded_noise(seed=seed, height_px=height_px, width_px=width_px)
    sigmas = flow.sigma_schedule(steps=steps, image_tokens=noise.shape[1], scheduler_config=model.scheduler_config)
    # The model is given t / 1000 in its own dtype, as the published pipeline gives it: bfloat16 rounds t first.
    times = (sigmas[:-1] * 1000).to(device=model.device, dtype=model.dtype) / 1000
    noise = noise.to(device=model.device, dtype=model.dtype)
    guided = guidance_scale > 1 and negative_embeds_1LJ is not None
    return Denoising(
        height_px=height_px,
        width_px=width_px,
        context_1LD=forward.context(embeds_1LJ),
        negative_context_1LD=forward.context(negative_embeds_1LJ) if guided else None,  # type: ignore[arg-type]
        guidance_scale=guidance_scale,
        cfg_renorm=cfg_renorm,
        sigmas=sigmas,
        modulations=tuple(forward.modulation(time) for time in times),
        rope=forward.rope(height_px=height_px, width_px=width_px, prompt_rows=embeds_1LJ.shape[1]),
        latents_1NC=noise,
        clean_1NC=noise,
    )


@torch.no_grad()
def advance(forward: Forward, pictures: Sequence[Denoising], slots: AdapterSlots | None = None) -> None:
    """Make one step of every picture in one forward. All must have one size; none may be done.

    Nothing has changed if it raises. ``slots``: where the pictures' adapters are.
    """
    first = pictures[0]
    assert all((p.height_px, p.width_px) == (first.height_px, first.width_px) and not p.is_done for p in pictures)
    rows = [(picture, context) for picture in pictures for context in picture.contexts]
    velocity_RNC = forward(
        torch.cat([picture.latents_1NC for picture, _ in rows]),
        torch.cat([context for _, context in rows]),
        torch.stack([picture.modulations[picture.step] for picture, _ in rows]),
        first.rope,
        None if slots is None else slots.gather([picture.adapters for picture, _ in rows]),
    )
    row = 0
    for picture in pictures:
        velocity_1NC = velocity_RNC[row : row + 1]
        if picture.negative_context_1LD is not None:
            velocity_1NC = flow.guide(
                velocity_1NC,
                velocity_RNC[row + 1 : row + 2],
                scale=picture.guidance_scale,
                renorm=picture.cfg_renorm,
            )
        row += len(picture.contexts)
        sigma, next_sigma = picture.sigmas[picture.step], picture.sigmas[picture.step + 1]
        picture.clean_1NC = picture.latents_1NC - sigma * velocity_1NC
        picture.latents_1NC = flow.euler_step(picture.latents_1NC, velocity_1NC, sigma, next_sigma)
        picture.step += 1


@torch.no_grad()
def decode(vae: AutoencoderKL, picture: Denoising) -> np.ndarray:
    """The picture's pixels, (H, W, 3) in uint8. One at a time: a batch rounds differently.

    Raises ``EngineError`` if the numbers left the dtype's range.
    """
    unpacked = latents.unpack(picture.latents_1NC, height_px=picture.height_px, width_px=picture.width_px)
    with one_core(unpacked.device):
        image = latents.decode(vae, unpacked)[0]
    if not torch.isfinite(image).all():
        raise EngineError(f"the picture is not finite in {image.dtype}: serve with --dtype bfloat16 or float32")
    return _pixels(image)


@torch.no_grad()
def preview(vae: AutoencoderKL, picture: Denoising, *, shrink: int) -> np.ndarray:
    """What the picture is becoming, (H / shrink, W / shrink, 3) in uint8: the last step's guess, from averaged latents."""
    unpacked = latents.unpack(picture.clean_1NC, height_px=picture.height_px, width_px=picture.width_px)
    with one_core(unpacked.device):
        return _pixels(latents.decode(vae, F.avg_pool2d(unpacked, shrink))[0])


def _pixels(image_3HW: Tensor) -> np.ndarray:
    pixels = (image_3HW * 0.5 + 0.5).clamp(0, 1).permute(1, 2, 0).float().cpu().numpy()
    return np.asarray((pixels * 255).round().astype(np.uint8))
