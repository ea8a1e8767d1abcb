"""The inputs of a forward: rows of noise with times of their own, for our forward and for diffusers'.

Shapes: R rows, N image tokens, C = 64, L prompt rows, J the text encoder's width.
"""

from dataclasses import dataclass
from functools import partial

import torch
from diffusers import LongCatImageTransformer2DModel
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu_check.subjects.models import CheckedModel
from longcat.sampling import latents
from longcat.sampling.forward import Forward
from longcat.sampling.updates.update import Updates


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The inputs of a forward of one size."""

    side_px: int
    noise_RNC: Tensor
    embeds_RLJ: Tensor
    times_R: Tensor
    """0..1, on the CPU."""

    @classmethod
    def make(cls, model: CheckedModel, *, rows: int, side_px: int) -> "Inputs":
        """Return inputs on the device, in the compute type; the same at every call."""
        generator = torch.Generator().manual_seed(rows)
        width = model.configuration("transformer")["joint_attention_dim"]
        noise = latents.seeded_noise(seed=0, height_px=side_px, width_px=side_px)
        embeds = torch.randn(1, model.prompt_tokens, width, generator=generator)
        return cls(
            side_px=side_px,
            noise_RNC=noise.to(model.device, model.dtype).repeat(rows, 1, 1),
            embeds_RLJ=embeds.to(model.device, model.dtype).repeat(rows, 1, 1),
            times_R=(torch.arange(1, rows + 1) / (rows + 1)).to(model.dtype),
        )

    def ours(self, forward: Forward, updates: Updates | None = None) -> partial[Tensor]:
        """Prepare our forward of all rows: what is computed once for a picture is computed here."""
        rows, prompt_rows = self.noise_RNC.shape[0], self.embeds_RLJ.shape[1]
        context = forward.context(self.embeds_RLJ[:1]).repeat(rows, 1, 1)
        modulations = torch.stack(forward.modulations(self.times_R))
        rope = forward.rope(height_px=self.side_px, width_px=self.side_px, prompt_rows=prompt_rows)
        return partial(forward, self.noise_RNC, context, modulations, rope, updates)

    @torch.no_grad()
    def theirs(self, transformer: LongCatImageTransformer2DModel) -> Tensor:
        """Run diffusers' forward of all rows."""
        prompt_rows, device = self.embeds_RLJ.shape[1], self.noise_RNC.device
        image = latents.image_ids(height_px=self.side_px, width_px=self.side_px, max_tokens=prompt_rows)
        velocity: Tensor = transformer(
            hidden_states=self.noise_RNC, timestep=self.times_R.to(device), encoder_hidden_states=self.embeds_RLJ,
            txt_ids=latents.text_ids(prompt_rows).to(device), img_ids=image.to(device), return_dict=False,
        )[0]  # fmt: skip
        return velocity


def row_flop(model: CheckedModel, side_px: int) -> int:
    """Return the floating-point operations of one row of a forward."""
    with torch.device("meta"):
        transformer = LongCatImageTransformer2DModel.from_config(model.configuration("transformer"))
    inputs = Inputs.make(model, rows=1, side_px=side_px)
    noise, embeds, times = (
        tensor.to("meta", torch.float32) for tensor in (inputs.noise_RNC, inputs.embeds_RLJ, inputs.times_R)
    )
    on_meta = Inputs(side_px=side_px, noise_RNC=noise, embeds_RLJ=embeds, times_R=times)
    with FlopCounterMode(display=False) as counter:
        on_meta.theirs(transformer)
    return int(counter.get_total_flops())
