"""DoRA: every row of an adapted weight has a norm of its own (arXiv 2402.09353, equation 5; PEFT's ``use_dora``).

A layer with weight W (out, in) and bias b computes, under an update D = B A at scale s,

    y = gain * (x W^T + s x D^T) + b,    gain = magnitude / ||W + s D||    (norms of rows)

OneTrainer and LyCORIS also normalize columns, which rescales the layer's input:

    y = (gain * x) (W + s D)^T + b,    gain = magnitude / ||W + s D||    (norms of columns)

Where a program has several modules fused as one layer, as the attention's q, k and v, a column is one of all their rows.

The squared norm is ||W||^2 + 2 s <W, D> + s^2 ||D||^2: three vectors give it at any scale, and none needs
a matrix of W's size to compute. Serving and training share this module.

Shapes: O = out, I = in, R = rank.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Norms:
    """The terms of the norms of W + s D, each (out,) of rows or (in,) of columns, in float32."""

    base: Tensor
    """||W||^2."""
    cross: Tensor
    """<W, D>."""
    update: Tensor
    """||D||^2."""

    def at(self, scale: float) -> Tensor:
        """Return ||W + scale D||."""
        squared = self.base + 2 * scale * self.cross + scale**2 * self.update
        return squared.clamp_min(torch.finfo(torch.float32).tiny).sqrt()

    def to(self, device: torch.device) -> "Norms":
        """Copy to a device."""
        return Norms(base=self.base.to(device), cross=self.cross.to(device), update=self.update.to(device))


@torch.no_grad()
def row_norms(base_O: Tensor, projected_OR: Tensor, down_RI: Tensor, up_OR: Tensor) -> Norms:
    """Return the norms' terms for a weight W under ``up @ down``; all in float32 on one device.

    ``base_O``: ||W||^2 of each row; ``projected_OR``: W A^T. No gradient flows through the norms, as in section 4.3 of the
    paper.
    """
    return Norms(
        base=base_O,
        cross=(projected_OR * up_OR).sum(1),
        update=(up_OR @ (down_RI @ down_RI.T) * up_OR).sum(1),
    )


@torch.no_grad()
def column_norms(parts: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Norms:
    """Return the norms' terms of the columns of fused weights; all in float32 on one device.

    ``parts``: of each weight, W (out, in), A (rank, in) and B (out, rank).
    """
    return Norms(
        base=_sum(base_OI.square().sum(0) for base_OI, _, _ in parts),
        cross=_sum((down_RI * (up_OR.T @ base_OI)).sum(0) for base_OI, down_RI, up_OR in parts),
        update=_sum((down_RI * (up_OR.T @ up_OR @ down_RI)).sum(0) for _, down_RI, up_OR in parts),
    )


def _sum(vectors: Iterable[Tensor]) -> Tensor:
    return torch.stack([*vectors]).sum(0)


def plain_weight(layer: nn.Module) -> Tensor:
    """Return a linear layer's weight in float32, without gradient, as its precision represents it."""
    weight: Any = layer.weight
    if type(weight) not in (Tensor, nn.Parameter) and hasattr(weight, "dequantize"):
        weight = weight.dequantize()
    plain: Tensor = weight.detach().float()
    return plain
