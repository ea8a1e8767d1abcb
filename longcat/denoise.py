"""Pictures on their way from noise: start them, advance any number of the same size by one step, decode.

Service and trainer sample through this module, so that a validation picture is the picture that is served. Every picture
has its own schedule, guidance and seed; on a CPU it comes out bitwise the same whoever shares its forward.

Shapes: B pictures, R rows of a forward (one a picture, two with guidance), N image tokens, C = 64, L prompt rows, D width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from diffusers import AutoencoderKL, LongCatImageTransformer2DModel
from torch import Tensor

from longcat import flow, latents
from longcat.errors import EngineError
from longcat.loading import Components


@dataclass(kw_only=True)
class Denoising:
    """One picture on its way. ``advance`` moves ``latents_1NC`` and ``step``; the rest stays."""

    height_px: int
    width_px: int
    embeds_1LD: Tensor
    negative_embeds_1LD: Tensor | None
    """None without guidance."""
    guidance_scale: float
    cfg_renorm: bool
    sigmas: Tensor
    """(steps + 1,) in float32 on the CPU, the last 0."""
    latents_1NC: Tensor
    text_ids_L3: Tensor
    image_ids_N3: Tensor
    step: int = 0

    @property
    def is_done(self) -> bool:
        """Whether all steps are made."""
        return self.step == len(self.sigmas) - 1


def start(
    model: Components,
    *,
    embeds_1LD: Tensor,
    negative_embeds_1LD: Tensor | None,
    height_px: int,
    width_px: int,
    steps: int,
    guidance_scale: float,
    cfg_renorm: bool,
    seed: int,
) -> Denoising:
    """A picture that is still noise. Guidance needs a scale over 1 and negative embeddings."""
    prompt_rows = embeds_1LD.shape[1]
    noise = latents.seeded_noise(seed=seed, height_px=height_px, width_px=width_px)
    return Denoising(
        height_px=height_px,
        width_px=width_px,
        embeds_1LD=embeds_1LD,
        negative_embeds_1LD=negative_embeds_1LD if guidance_scale > 1 else None,
        guidance_scale=guidance_scale,
        cfg_renorm=cfg_renorm,
        sigmas=flow.sigma_schedule(steps=steps, image_tokens=noise.shape[1], scheduler_config=model.scheduler_config),
        latents_1NC=noise.to(device=model.device, dtype=model.dtype),
        text_ids_L3=latents.text_ids(prompt_rows).to(model.device),
        image_ids_N3=latents.image_ids(height_px=height_px, width_px=width_px, max_tokens=prompt_rows).to(model.device),
    )


@torch.no_grad()
def advance(transformer: LongCatImageTransformer2DModel, pictures: Sequence[Denoising]) -> None:
    """Make one step of every picture in one forward. All must have one size; none may be done."""
    first = pictures[0]
    device, dtype = first.latents_1NC.device, first.latents_1NC.dtype
    assert all((p.height_px, p.width_px) == (first.height_px, first.width_px) and not p.is_done for p in pictures)
    rows = [(p, embeds) for p in pictures for embeds in (p.embeds_1LD, p.negative_embeds_1LD) if embeds is not None]
    # The model is given t / 1000 in its own dtype, as the published pipeline gives it: bfloat16 rounds t first.
    times = torch.stack([p.sigmas[p.step] * 1000 for p, _ in rows]).to(device=device, dtype=dtype) / 1000
    velocity_RNC = transformer(
        hidden_states=torch.cat([p.latents_1NC for p, _ in rows]),
        encoder_hidden_states=torch.cat([embeds for _, embeds in rows]),
        timestep=times,
        txt_ids=first.text_ids_L3,
        img_ids=first.image_ids_N3,
        return_dict=False,
    )[0]
    row = 0
    for picture in pictures:
        velocity_1NC = velocity_RNC[row : row + 1]
        if picture.negative_embeds_1LD is not None:
            velocity_1NC = flow.guide(
                velocity_1NC,
                velocity_RNC[row + 1 : row + 2],
                scale=picture.guidance_scale,
                renorm=picture.cfg_renorm,
            )
            row += 1
        row += 1
        sigma, next_sigma = picture.sigmas[picture.step], picture.sigmas[picture.step + 1]
        picture.latents_1NC = flow.euler_step(picture.latents_1NC, velocity_1NC, sigma, next_sigma)
        picture.step += 1


@torch.no_grad()
def decode(vae: AutoencoderKL, picture: Denoising) -> np.ndarray:
    """The picture's pixels, (H, W, 3) in uint8. One at a time: a batch rounds differently.

    Raises ``EngineError`` if the numbers left the dtype's range.
    """
    unpacked = latents.unpack(picture.latents_1NC, height_px=picture.height_px, width_px=picture.width_px)
    image = latents.decode(vae, unpacked)[0]
    if not torch.isfinite(image).all():
        raise EngineError(f"the picture is not finite in {image.dtype}: serve with --dtype bfloat16 or float32")
    pixels = (image * 0.5 + 0.5).clamp(0, 1).permute(1, 2, 0).float().cpu().numpy()
    return np.asarray((pixels * 255).round().astype(np.uint8))


def make_rows_independent(transformer: LongCatImageTransformer2DModel) -> None:
    """Make a row's result bitwise independent of how many rows share the forward, on a CPU. Call it once.

    Two things make it depend: diffusers splits the attention's output into text and image rows without copying, and a linear
    layer rounds differently over such a strided view; and the layers that see one vector a row (time embedding, modulation)
    round differently for one row than for many. Layers that see hundreds of tokens do not.
    """
    for block in transformer.transformer_blocks:
        for linear in (block.attn.to_out[0], block.attn.to_add_out):
            linear.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    for name, module in transformer.named_modules():
        if name.endswith(_SEES_ONE_VECTOR_A_ROW):
            module.forward = partial(_one_row_at_a_time, module.forward)


_SEES_ONE_VECTOR_A_ROW = (
    "timestep_embedder.linear_1",
    "timestep_embedder.linear_2",
    "norm.linear",
    "norm1.linear",
    "norm1_context.linear",
    "norm_out.linear",
)


def _one_row_at_a_time(forward: Callable[[Tensor], Tensor], rows_RD: Tensor) -> Tensor:
    return torch.cat([forward(row) for row in torch.split(rows_RD, 1)])
