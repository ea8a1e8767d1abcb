"""Denoising: start images from noise, advance any number of one size by one step, decode them.

Service and trainer both sample through this module, so that a validation image equals the served image. Every image has its
own schedule, guidance, seed and adapters; on a CPU it is bitwise independent of the images that share its forward.

Shapes: B images, R rows of a forward (one for an image, two with guidance), N image tokens, C = 64, L prompt rows, D the
transformer's width, J the text encoder's, M numbers of modulation.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from longcat.model.device.threads import one_core
from longcat.sampling import flow, latents
from longcat.sampling.blocks import Rope
from longcat.sampling.conditioning import UNCHANGED, ConditioningUpdates
from longcat.sampling.encoding.source import EncodedSource, Start
from longcat.sampling.forward import Base, Forward, schedule
from longcat.sampling.reuse import Reuse
from longcat.sampling.slots import AdapterSlots, SlotUse


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
    """(steps + 1,) in float32 on the CPU, the last 0. The first is 1, or less for an image that starts from a picture."""
    modulations: tuple[Tensor, ...]
    """One (M,) for each step."""
    rope: Rope
    latents_1NC: Tensor
    clean_1NC: Tensor
    """The clean latents that the last step predicted."""
    reference_1NC: Tensor | None = None
    """Latents of the picture that the image is made from, of the image's size; None without one."""
    adapters: tuple[SlotUse, ...] = ()
    reuse: Reuse | None = None
    """None: every step computes every row."""
    start: Start | None = None
    """The picture that it starts from; None: noise alone."""
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
    def shape(self) -> tuple[int, int, int, bool]:
        """Height and width in px, prompt rows, and whether there is a reference: rows of one shape share a forward."""
        return self.height_px, self.width_px, self.context_1LD.shape[1], self.reference_1NC is not None

    @property
    def contexts(self) -> tuple[Tensor, ...]:
        """Contexts of the rows of a forward, at most: conditional, then unconditional."""
        negative_1LD = self.negative_context_1LD
        return (self.context_1LD,) if negative_1LD is None else (self.context_1LD, negative_1LD)

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
    reference_1NC: Tensor | None = None,
) -> Denoising:
    """Return an image that is still noise. Guidance needs a scale over 1 and negative embeddings.

    ``adapters``: loaded in ``slots``. They may change the prompt's projection and the modulations, which are computed here.
    ``reuse_tolerance``, ``reference_1NC``: as for ``begin``.
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
        reference_1NC=reference_1NC,
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
    reference_1NC: Tensor | None = None,
    source: EncodedSource | None = None,
) -> Denoising:
    """Return an image that is still noise, of prompts that are projected already.

    ``updates``: of its adapters, with which the prompts were projected. Modulations are computed unless ``schedule`` was
    called before. ``reuse_tolerance``: that of ``Reuse``; 0: every step computes every row. ``reference_1NC``: packed
    latents of a picture of the image's size, which the transformer sees beside the image. ``source``: the picture that it
    starts from, of the same size, which leaves out the first steps.
    """
    noise = latents.seeded_noise(seed=seed, height_px=height_px, width_px=width_px)
    noise = noise.to(dtype=model.dtype).to(device=model.device, non_blocking=True)
    strength = 1.0 if source is None else source.strength
    size = {"height_px": height_px, "width_px": width_px}
    sigmas, modulations = schedule(model, forward, **size, steps=steps, strength=strength, updates=updates)
    start = None if source is None else Start(source=source, noise_1NC=noise)
    first = noise if start is None else start.at(sigmas[0])
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
        rope=forward.rope(**size, prompt_rows=context_1LD.shape[1], has_reference=reference_1NC is not None),
        latents_1NC=first,
        clean_1NC=first,
        reference_1NC=reference_1NC,
        adapters=adapters,
        reuse=Reuse(reuse_tolerance, guidance_weight) if reuse_tolerance else None,
        start=start,
    )


@torch.no_grad()
def advance(
    forward: Forward,
    pictures: Sequence[Denoising],
    slots: AdapterSlots | None = None,
    *,
    max_rows: int | None = None,
) -> int:
    """Advance every image by one step; return the rows that were computed. None may be done.

    Images of one shape share a forward: those with a reference have other token counts than those without, so that each
    kind has its own. If it raises, no image has changed. ``slots``: the slots of the images' adapters. ``max_rows``: most
    rows of a forward; by default all of a shape.
    """
    assert not any(picture.is_done for picture in pictures)
    pictures = sorted(pictures, key=lambda p: (p.shape, () if slots is None else slots.order(p.adapters)))
    contexts = [picture.next_contexts for picture in pictures]
    rows = [(picture, context) for picture, own in zip(pictures, contexts, strict=True) for context in own]
    velocities = (
        velocity_1NC
        for _, alike in itertools.groupby(rows, lambda row: row[0].shape)
        for share in _batches(list(alike), max_rows)
        for velocity_1NC in _velocity(forward, share, slots).split(1)
    )
    advanced = [
        _advanced(picture, tuple(itertools.islice(velocities, len(own))))
        for picture, own in zip(pictures, contexts, strict=True)
    ]
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
    next_1NC = flow.euler_step(picture.latents_1NC, velocity_1NC, sigma, next_sigma)
    if picture.start is not None:
        clean_1NC, next_1NC = (
            picture.start.blend(clean_1NC, picture.sigmas[-1]),
            picture.start.blend(next_1NC, next_sigma),
        )
    return clean_1NC, next_1NC, reuse


def _batches(rows: list[tuple[Denoising, Tensor]], most: int | None) -> Iterator[list[tuple[Denoising, Tensor]]]:
    while rows:
        yield rows[:most]
        rows = [] if most is None else rows[most:]


def _velocity(forward: Forward, rows: Sequence[tuple[Denoising, Tensor]], slots: AdapterSlots | None) -> Tensor:
    """Predict the velocities of rows of one shape, each an image and a context of it, at the images' own tokens."""
    tokens_RNC = torch.cat([picture.latents_1NC for picture, _ in rows])
    references = [picture.reference_1NC for picture, _ in rows if picture.reference_1NC is not None]
    velocities = forward(
        torch.cat([tokens_RNC, torch.cat(references)], dim=1) if references else tokens_RNC,
        torch.cat([context for _, context in rows]),
        torch.stack([picture.modulations[picture.step] for picture, _ in rows]),
        rows[0][0].rope,
        None if slots is None else slots.gather([picture.adapters for picture, _ in rows]),
    )
    return velocities[:, : tokens_RNC.shape[1]]


@torch.no_grad()
def decode(vae: AutoencoderKL, picture: Denoising) -> np.ndarray:
    """Decode an image to pixels, (H, W, 3) in uint8, with those of its source outside the mask.

    One at a time: a batch rounds differently. Raises ``EngineError`` if numbers exceed the dtype's range.
    """
    unpacked = latents.unpack(picture.latents_1NC, height_px=picture.height_px, width_px=picture.width_px)
    with one_core(unpacked.device):
        pixels = latents.pixels(latents.decode_any_size(vae, unpacked))
    area = None if picture.start is None else picture.start.source.area
    return pixels if area is None else area.paste(pixels)


@torch.no_grad()
def preview(vae: AutoencoderKL, picture: Denoising, *, shrink: int) -> np.ndarray:
    """Decode the last step's predicted image, from averaged latents, to (H / shrink, W / shrink, 3) in uint8."""
    unpacked = latents.unpack(picture.clean_1NC, height_px=picture.height_px, width_px=picture.width_px)
    with one_core(unpacked.device):
        return latents.pixels(latents.decode(vae, F.avg_pool2d(unpacked, shrink))[0])
