"""PEFT's LoRA layer as training computes it: ``y = W x + b + scale * B A dropout(x)``, in one differentiable operation.

PEFT's own forward casts the input to float32 and back, and keeps float32 copies and masks for the backward pass. Here A and
B are cast to the input's type instead, as autocast does, and the backward pass keeps three things: the input itself, which
neighbouring layers share, one byte of mask per element, and the output of A. The result is the same; parameters, names and
configuration are PEFT's.

Shapes: R rows (batch times tokens), I and O the layer's widths, r the rank.
"""

from typing import Any

import torch
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor

_LANES = 2**16
"""The dropout probability is a multiple of 1 / _LANES: 64 random bits make the masks of four elements."""


class LowRankLinear(PeftLinear):
    """A PEFT layer with one adapter that is neither merged nor DoRA."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., O), in the base's type, for ``x`` of shape (..., I)."""
        result: Tensor = self.base_layer(x)
        if self.disable_adapters:
            return result
        (name,) = self.active_adapters
        # Without dropout, PEFT puts an identity module in its place.
        share = getattr(self.lora_dropout[name], "p", 0.0) if self.training else 0.0
        updated: Tensor = _LowRankUpdate.apply(
            result, x, self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name], share
        )
        return updated


class _LowRankUpdate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, result: Tensor, x: Tensor, down: Tensor, up: Tensor, scale: float, dropout: float) -> Tensor:
        dtype = result.dtype
        lanes = round(dropout * _LANES)
        kept_RI = _kept(x.numel(), lanes, x.device).view(-1, x.shape[-1]) if lanes else None
        scale /= 1 - lanes / _LANES
        hidden_Rr = _dropped(x, kept_RI, dtype) @ down.T.to(dtype)
        ctx.save_for_backward(x, kept_RI, hidden_Rr, down, up)
        ctx.scale = scale
        return torch.addmm(result.flatten(0, -2), hidden_Rr, up.T.to(dtype), alpha=scale).view(result.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, kept_RI, hidden_Rr, down, up = ctx.saved_tensors
        dtype = hidden_Rr.dtype
        grad_RO = grad.flatten(0, -2)
        grad_hidden_Rr = (grad_RO @ up.to(dtype)).mul_(ctx.scale)
        grad_up = (grad_RO.T @ hidden_Rr).to(up.dtype).mul_(ctx.scale)
        grad_down = (grad_hidden_Rr.T @ _dropped(x, kept_RI, dtype)).to(down.dtype)
        grad_x = None
        if ctx.needs_input_grad[1]:
            grad_RI = grad_hidden_Rr @ down.to(dtype)
            if kept_RI is not None:
                grad_RI.mul_(kept_RI.to(dtype))
            grad_x = grad_RI.view(x.shape).to(x.dtype)
        return grad, grad_x, grad_down, grad_up, None, None


def _dropped(x: Tensor, kept_RI: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return ``x`` as (R, I), zero where it is dropped. Scaling is applied to A's narrow result, where it costs less."""
    x_RI = x.flatten(0, -2).to(dtype)
    return x_RI if kept_RI is None else x_RI * kept_RI.to(dtype)  # a product of mixed types would be slower


def _kept(count: int, lanes: int, device: torch.device) -> Tensor:
    """Return ``count`` booleans, each false with a probability of ``lanes`` / 2^16."""
    if device.type != "cpu":
        return torch.empty(count, dtype=torch.bool, device=device).bernoulli_(1 - lanes / _LANES)
    # A CPU generates random numbers one by one: four elements per number take a seventh of bernoulli_'s time.
    bits = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    return bits.view(torch.int16)[:count] >= lanes - _LANES // 2
