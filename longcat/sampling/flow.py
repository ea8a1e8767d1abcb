"""Flow matching as LongCat-Image is trained and sampled: pure functions.

A noisy latent is x = (1 - sigma) * clean + sigma * noise; the transformer predicts the velocity noise - clean.
Times are shifted towards noise by exp(mu), mu linear in the number of image tokens, in training and sampling alike
(Esser et al. 2024, "Scaling Rectified Flow Transformers", section 5.3.2; diffusers ``calculate_shift``).

Shapes: B batch, N image tokens, C channels a token.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor


def shift_mu(image_tokens: int, scheduler_config: Mapping[str, Any]) -> float:
    """Return the logarithm of the time shift: linear through (256 tokens, 0.5) and (4096 tokens, 1.15) unless configured."""
    low, high = scheduler_config.get("base_image_seq_len", 256), scheduler_config.get("max_image_seq_len", 4096)
    at_low, at_high = scheduler_config.get("base_shift", 0.5), scheduler_config.get("max_shift", 1.15)
    slope = (at_high - at_low) / (high - low)
    return float(slope * image_tokens + (at_low - slope * low))


def sigma_schedule(*, steps: int, image_tokens: int, scheduler_config: Mapping[str, Any]) -> Tensor:
    """Return noise levels from 1 to 0, (steps + 1,) in float32 on the CPU."""
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(dict(scheduler_config))
    evenly = np.linspace(1.0, 1.0 / steps, steps)
    scheduler.set_timesteps(sigmas=evenly, mu=shift_mu(image_tokens, scheduler_config), device="cpu")
    sigmas: Tensor = scheduler.sigmas
    return sigmas


def training_sigmas(batch: int, *, mu: float, generator: torch.Generator | None = None) -> Tensor:
    """Sample logit-normal noise levels, shifted by mu: (B,) in float32. sigmoid(z + mu) is the shift of sigmoid(z)."""
    return torch.sigmoid(torch.randn(batch, generator=generator) + mu)


def add_noise(clean_BNC: Tensor, noise_BNC: Tensor, sigma_B: Tensor) -> Tensor:
    """Return (1 - sigma) * clean + sigma * noise."""
    sigma = sigma_B[:, None, None]
    return (1 - sigma) * clean_BNC + sigma * noise_BNC


def velocity(clean_BNC: Tensor, noise_BNC: Tensor) -> Tensor:
    """Return the transformer's target: noise - clean."""
    return noise_BNC - clean_BNC


def guide(
    conditional_BNC: Tensor, unconditional_BNC: Tensor, *, scale: float, renorm: bool, renorm_min: float = 0.0
) -> Tensor:
    """Apply classifier-free guidance; ``renorm`` limits each token's norm to that of the conditional prediction.

    Source: diffusers ``LongCatImagePipeline.__call__`` (``enable_cfg_renorm``).
    """
    guided = unconditional_BNC + scale * (conditional_BNC - unconditional_BNC)
    if not renorm:
        return guided
    limit_norm = torch.norm(conditional_BNC, dim=-1, keepdim=True)
    norm = torch.norm(guided, dim=-1, keepdim=True)
    limit: Tensor = (limit_norm / (norm + 1e-8)).clamp(min=renorm_min, max=1.0)
    return guided * limit


def euler_step(latents_BNC: Tensor, velocity_BNC: Tensor, sigma: Tensor, next_sigma: Tensor) -> Tensor:
    """Take an Euler step from sigma to next_sigma (0-dim), computed in float32, returned in the velocity's dtype."""
    stepped = latents_BNC.float() + (next_sigma - sigma) * velocity_BNC
    return stepped.to(velocity_BNC.dtype)
