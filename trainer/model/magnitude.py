"""DoRA in training: the magnitudes of one layer's rows.

PEFT computes DoRA's norms from a matrix of the weight's size, in every forward and in the type of computation, which loses
digits that the service has. ``Magnitude`` replaces PEFT's module: it computes the same norms from vectors
(``longcat.adapter.weights.dora``), as the service does.
"""

from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer as PeftLayer
from torch import Tensor, nn

from longcat.adapter.weights.dora import Norms, plain_weight, row_norms


class Magnitude(nn.Module):
    """The DoRA of one layer, with the signature of PEFT's ``DoraLinearLayer``, which it replaces.

    It computes in its input's type; parameters and norms are float32.
    """

    base_norms: Tensor
    """||W||^2 of the frozen weight, (out,) in float32."""

    def __init__(self, layer: PeftLayer, adapter: str) -> None:
        """Start from the norms of the base's rows, which change nothing. ``adapter`` is its name in PEFT's layer."""
        super().__init__()
        base, lora_A = layer.get_base_layer(), layer.lora_A[adapter]
        self.register_buffer("base_norms", plain_weight(base).square().sum(1), persistent=False)
        norms = self._norms(base, lora_A, layer.lora_B[adapter])
        self.weight = nn.Parameter(norms.at(layer.scaling[adapter]))

    def forward(
        self,
        x: Tensor,
        *,
        lora_A: Any,
        lora_B: Any,
        scaling: float,
        base_layer: Any,
        base_result: Tensor | None = None,
        **_: object,
    ) -> Tensor:
        """Return the update of the layer's result. ``base_result`` is None after dropout: it is computed from ``x`` then."""
        dtype = x.dtype
        gain = self.weight / self._norms(base_layer, lora_A, lora_B).at(scaling)
        if base_result is None:
            base_result = base_layer(x)
        bias: Tensor = base_layer.bias
        up = (gain * scaling)[:, None] * lora_B.weight
        low_rank = F.linear(F.linear(x, lora_A.weight.to(dtype)), up.to(dtype))
        return (gain - 1).to(dtype) * (base_result - bias) + low_rank

    @torch.no_grad()
    def _norms(self, base_layer: Any, lora_A: Any, lora_B: Any) -> Norms:
        """Return the rows' norms. The layer itself computes W A^T, so that a quantized weight is never decoded whole."""
        down: Tensor = lora_A.weight
        up: Tensor = lora_B.weight
        # Every layer of this transformer has a bias; an offloaded one is on the device after the call.
        projected = base_layer(down.to(base_layer.bias.dtype)) - base_layer.bias
        return row_norms(self.base_norms, projected.float().T, down.float(), up.float())
