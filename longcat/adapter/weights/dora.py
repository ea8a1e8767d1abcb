"""DoRA: every row of an adapted weight has a norm of its own (arXiv 2402.09353, equation 5; PEFT's ``use_dora``).

A layer with weight W (out, in) and bias b computes, under an update D = B A at scale s,

    y = gain * (x W^T + s x D^T) + b,    gain = magnitude / ||W + s D||    (norms of rows)

The squared norm is ||W||^2 + 2 s <W, D> + s^2 ||D||^2: three vectors of ``out`` numbers give it at any scale, and none needs
a matrix of W's size to compute. Serving and training share this module.

Shapes: O = out, I = in, R = rank.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class RowNorms:
    """The terms of the norms of W + s D, each (out,) in float32."""

    base: Tensor
    """||W||^2."""
    cross: Tensor
    """<W, D>."""
    update: Tensor
    """||D||^2."""

    def at(self, scale: float) -> Tensor:
        """Return ||W + scale D||, (out,)."""
        squared = self.base + 2 * scale * self.cross + scale**2 * self.update
        return squared.clamp_min(torch.finfo(torch.float32).tiny).sqrt()

    def to(self, device: torch.device) -> "RowNorms":
        """Copy to a device."""
        return RowNorms(base=self.base.to(device), cross=self.cross.to(device), update=self.update.to(device))


@torch.no_grad()
def row_norms(base_O: Tensor, projected_OR: Tensor, down_RI: Tensor, up_OR: Tensor) -> RowNorms:
    """Return the norms' terms for a weight W under ``up @ down``; all in float32 on one device.

    ``base_O``: ||W||^2 of each row; ``projected_OR``: W A^T. No gradient flows through the norms, as in section 4.3 of the
    paper.
    """
    return RowNorms(
        base=base_O,
        cross=(projected_OR * up_OR).sum(1),
        update=(up_OR @ (down_RI @ down_RI.T) * up_OR).sum(1),
    )


def plain_weight(layer: nn.Module) -> Tensor:
    """Return a linear layer's weight in float32, without gradient, as its precision represents it."""
    weight: Any = layer.weight
    if type(weight) not in (Tensor, nn.Parameter) and hasattr(weight, "dequantize"):
        weight = weight.dequantize()
    plain: Tensor = weight.detach().float()
    return plain
