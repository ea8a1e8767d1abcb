"""Compilation of a forward of every common shape at the start, so that no request waits for ``torch.compile``."""

import torch

from longcat.model.loading import Components
from longcat.model.shape import vision_tokens
from longcat.sampling import latents
from longcat.sampling.forward import Forward
from longcat.sampling.slots import AdapterSlots


@torch.no_grad()
def compile_forwards(model: Components, forward: Forward, slots: AdapterSlots, *, max_rows: int) -> None:
    """Run forwards of 1 to ``max_rows`` rows at the default size, with and without adapters."""
    settings, width = model.flavour.settings, model.transformer.config.joint_attention_dim
    side, device, dtype = settings.default_size_px, model.device, model.dtype
    noise_1NC = latents.seeded_noise(seed=0, height_px=side, width_px=side).to(device=device, dtype=dtype)
    prompt_rows = settings.max_prompt_tokens
    if settings.edits:  # beside a reference, which the text encoder sees, too
        noise_1NC = noise_1NC.repeat(1, 2, 1)
        prompt_rows += 2 + vision_tokens(width_px=side, height_px=side)
    context_1LD = forward.context(torch.zeros(1, prompt_rows, width, device=device, dtype=dtype))
    modulation_M = forward.modulations(torch.tensor([0.5], dtype=dtype))[0]
    rope = forward.rope(height_px=side, width_px=side, prompt_rows=prompt_rows, has_reference=settings.edits)
    for rows in range(1, max_rows + 1):
        for uses in [(), ((slots.count, 1.0),)] if slots.count else [()]:
            forward(
                noise_1NC.repeat(rows, 1, 1),
                context_1LD.repeat(rows, 1, 1),
                modulation_M.repeat(rows, 1),
                rope,
                slots.gather([uses] * rows),
            )
