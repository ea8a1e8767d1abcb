"""Denoising: start images from noise, advance any number of one size by one step, decode them.

Service and trainer both sample through this module, so that a validation image equals the served image. Every image has its
own schedule, guidance, seed and adapters; on a CPU it is bitwise independent of the images that share its forward.

Shapes: B images, R rows of a forward (one for an image, two with guidance), N image tokens, C = 64, L prompt rows, D the
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

from longcat.errors import EngineError
from longcat.model.device.errors import first_that_fits
from longcat.model.device.threads import one_core
from longcat.model.shape import WHOLE_DECODE_PIXELS, image_tokens
from longcat.sampling import flow, latents
from longcat.sampling.blocks import Rope
from longcat.sampling.conditioning import UNCHANGED, ConditioningUpdates
from longcat.sampling.forward import Forward
from longcat.sampling.reuse import Reuse
from longcat.sampling.slots import AdapterSlots, SlotUse


class Base(Protocol):
    """The part of a model that ``start`` needs; ``longcat.model.loading.Components`` has it."""

    @property
    def device(self) -> torch.device:
        """Device that computes."""

    @property
    def dtype(self) -> torch.dtype:
        """Compute dtype."""

    @property
    def scheduler_config(self) -> Mapping[str, Any]:
        """Scheduler configuration, which gives the noise levels."""


@dataclass(kw_only=True)
class Denoising:
    """One image under way. ``advance`` changes ``latents_1NC``, ``clean_1NC``, ``reuse`` and ``step`` only."""

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
    """One (M,) for each step."""
    rope: Rope
    latents_1NC: Tensor
    clean_1NC: Tensor
    """The clean latents that the last step predicted."""
    adapters: tuple[SlotUse, ...] = ()
    reuse: Reuse | None = None
    """None: every step computes every row."""
    step: int = 0

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.modulations)

    @property
    def is_done(self) -> bool:
        """True after the last step."""
        return self.step == self.steps

    @property
    def contexts(self) -> tuple[Tensor, ...]:
        """Contexts of the rows of a forward, at most: conditional, then unconditional."""
        return (
            (self.context_1LD,) if self.negative_context_1LD is None else (self.context_1LD, self.negative_context_1LD)
        )

    @property
    def next_contexts(self) -> tuple[Tensor, ...]:
        """Contexts of the rows that the next step computes; without ``reuse`` all."""
        if self.reuse is None:
            return self.contexts
        return self.contexts[: self.reuse.rows(float(self.sigmas[self.step]))]


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
    adapters: tuple[SlotUse, ...] = (),
    slots: AdapterSlots | None = None,
    reuse_tolerance: float = 0.0,
) -> Denoising:
    """Return an image that is still noise. Guidance needs a scale over 1 and negative embeddings.

    ``adapters``: loaded in ``slots``. They may change the prompt's projection and the modulations, which are computed here.
    ``reuse_tolerance``: as for ``begin``.
    """
    updates = UNCHANGED if slots is None else slots.conditioning(adapters)
    if guidance_scale <= 1:
        negative_embeds_1LJ = None
    return begin(
        model,
        forward,
        context_1LD=forward.context(embeds_1LJ, updates),
        negative_context_1LD=None if negative_embeds_1LJ is None else forward.context(negative_embeds_1LJ, updates),
        height_px=height_px,
        width_px=width_px,
        steps=steps,
        guidance_scale=guidance_scale,
        cfg_renorm=cfg_renorm,
        seed=seed,
        adapters=adapters,
        updates=updates,
        reuse_tolerance=reuse_tolerance,
    )


def begin(
    model: Base,
    forward: Forward,
    *,
    context_1LD: Tensor,
    negative_context_1LD: Tensor | None,
    height_px: int,
    width_px: int,
    steps: int,
    guidance_scale: float,
    cfg_renorm: bool,
    seed: int,
    adapters: tuple[SlotUse, ...] = (),
    updates: ConditioningUpdates = UNCHANGED,
    reuse_tolerance: float = 0.0,
) -> Denoising:
    """Return an image that is still noise, of prompts that are projected already.

    ``updates``: of its adapters, with which the prompts were projected. Modulations are computed unless ``schedule`` was
    called before. ``reuse_tolerance``: that of ``Reuse``; 0: every step computes every row.
    """
    noise = latents.seeded_noise(seed=seed, height_px=height_px, width_px=width_px)
    noise = noise.to(dtype=model.dtype).to(device=model.device, non_blocking=True)
    sigmas, modulations = schedule(model, forward, height_px=height_px, width_px=width_px, steps=steps, updates=updates)
    guidance_weight = 0.0 if negative_context_1LD is None else guidance_scale - 1
    return Denoising(
        height_px=height_px,
        width_px=width_px,
        context_1LD=context_1LD,
        negative_context_1LD=negative_context_1LD,
        guidance_scale=guidance_scale,
        cfg_renorm=cfg_renorm,
        sigmas=sigmas,
        modulations=modulations,
        rope=forward.rope(height_px=height_px, width_px=width_px, prompt_rows=context_1LD.shape[1]),
        latents_1NC=noise,
        clean_1NC=noise,
        adapters=adapters,
        reuse=Reuse(reuse_tolerance, guidance_weight) if reuse_tolerance else None,
    )


def schedule(
    model: Base,
    forward: Forward,
    *,
    height_px: int,
    width_px: int,
    steps: int,
    updates: ConditioningUpdates = UNCHANGED,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the noise levels (steps + 1,) in float32 on the CPU, and the modulations (M,) of each step.

    Modulations that ``forward`` has not cached are computed from most of the transformer's weights: done ahead of ``start``,
    they do not delay the steps of other images.
    """
    tokens = image_tokens(height_px=height_px, width_px=width_px)
    sigmas = flow.sigma_schedule(steps=steps, image_tokens=tokens, scheduler_config=model.scheduler_config)
    # The model is given t / 1000 in its own dtype, as the published pipeline gives it: bfloat16 rounds t first.
    return sigmas, forward.modulations((sigmas[:-1] * 1000).to(model.dtype) / 1000, updates)


@torch.no_grad()
def advance(
    forward: Forward,
    pictures: Sequence[Denoising],
    slots: AdapterSlots | None = None,
    *,
    max_rows: int | None = None,
) -> int:
    """Advance every image by one step; return the rows that were computed. All must have one size, and none may be done.

    If it raises, no image has changed. ``slots``: the slots of the images' adapters. ``max_rows``: most rows of a forward;
    by default there is one forward.
    """
    first = pictures[0]
    assert all((p.height_px, p.width_px) == (first.height_px, first.width_px) and not p.is_done for p in pictures)
    if slots is not None:
        order = slots.order
        pictures = sorted(pictures, key=lambda picture: order(picture.adapters))
    contexts = [picture.next_contexts for picture in pictures]
    rows = [(picture, context) for picture, own in zip(pictures, contexts, strict=True) for context in own]
    share = max_rows or len(rows)
    velocities = [
        velocity_1NC
        for begin in range(0, len(rows), share or 1)
        for velocity_1NC in _velocity(forward, rows[begin : begin + share], first.rope, slots).split(1)
    ]
    advanced = []
    for picture, own in zip(pictures, contexts, strict=True):
        computed, velocities = velocities[: len(own)], velocities[len(own) :]
        advanced.append(_advanced(picture, computed))
    for picture, (clean_1NC, latents_1NC, reuse) in zip(pictures, advanced, strict=True):
        picture.clean_1NC, picture.latents_1NC, picture.reuse = clean_1NC, latents_1NC, reuse
        picture.step += 1
    return len(rows)


def _advanced(picture: Denoising, computed: Sequence[Tensor]) -> tuple[Tensor, Tensor, Reuse | None]:
    """Return an image's clean latents, its latents and its state of reuse after a step that computed these velocities."""
    sigma, next_sigma = picture.sigmas[picture.step], picture.sigmas[picture.step + 1]
    reuse, velocities = picture.reuse, tuple(computed)
    if reuse is not None:
        with one_core(picture.latents_1NC.device):
            velocities = reuse.filled(float(sigma), computed)
            reuse = reuse.extended(float(sigma), computed)
    velocity_1NC = velocities[0]
    if picture.negative_context_1LD is not None:
        velocity_1NC = flow.guide(*velocities, scale=picture.guidance_scale, renorm=picture.cfg_renorm)
    clean_1NC = picture.latents_1NC - sigma * velocity_1NC
    return clean_1NC, flow.euler_step(picture.latents_1NC, velocity_1NC, sigma, next_sigma), reuse


def _velocity(
    forward: Forward, rows: Sequence[tuple[Denoising, Tensor]], rope: Rope, slots: AdapterSlots | None
) -> Tensor:
    """Predict the velocities of rows, each an image and a context of it."""
    return forward(
        torch.cat([picture.latents_1NC for picture, _ in rows]),
        torch.cat([context for _, context in rows]),
        torch.stack([picture.modulations[picture.step] for picture, _ in rows]),
        rope,
        None if slots is None else slots.gather([picture.adapters for picture, _ in rows]),
    )


@torch.no_grad()
def decode(vae: AutoencoderKL, picture: Denoising) -> np.ndarray:
    """Decode an image to pixels, (H, W, 3) in uint8. One at a time: a batch rounds differently.

    On a GPU, an image of more than ``WHOLE_DECODE_PIXELS``, or one for which memory is not enough, is decoded in tiles that
    overlap, which changes the last bits of some pixels.

    Raises ``EngineError`` if numbers exceed the dtype's range.
    """
    unpacked = latents.unpack(picture.latents_1NC, height_px=picture.height_px, width_px=picture.width_px)
    with one_core(unpacked.device):
        if unpacked.device.type != "cpu" and picture.height_px * picture.width_px > WHOLE_DECODE_PIXELS:
            image = latents.decode(vae, unpacked, tiled=True)[0]
        else:
            image = first_that_fits(
                lambda: latents.decode(vae, unpacked)[0], lambda: latents.decode(vae, unpacked, tiled=True)[0]
            )
    if not torch.isfinite(image).all():
        raise EngineError(
            "image_not_finite",
            "the image is not finite in {dtype}",
            remedy="use --dtype bfloat16 or float32",
            dtype=str(image.dtype).removeprefix("torch."),
        )
    return _pixels(image)


@torch.no_grad()
def preview(vae: AutoencoderKL, picture: Denoising, *, shrink: int) -> np.ndarray:
    """Decode the last step's predicted image, from averaged latents, to (H / shrink, W / shrink, 3) in uint8."""
    unpacked = latents.unpack(picture.clean_1NC, height_px=picture.height_px, width_px=picture.width_px)
    with one_core(unpacked.device):
        return _pixels(latents.decode(vae, F.avg_pool2d(unpacked, shrink))[0])


def _pixels(image_3HW: Tensor) -> np.ndarray:
    pixels = (image_3HW * 0.5 + 0.5).clamp(0, 1).permute(1, 2, 0).float().cpu().numpy()
    return np.asarray((pixels * 255).round().astype(np.uint8))
