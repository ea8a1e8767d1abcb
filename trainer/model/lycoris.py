"""LoKr and LoHa in training: modules around the frozen linear layers, computed from their factors.

The matrices are those of ``lycoris-lora``, with its initial values. Where its factors are smaller, the update is not made a
matrix of the layer's size, as ``lycoris-lora`` does in every forward: see ``longcat.adapter.weights.lycoris``.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longcat.adapter.modules import linear_modules
from longcat.adapter.weights.lycoris import LycorisLayer, lycoris_layer, pairs, scaled_by
from trainer.config.simpletuner.lycoris import LycorisConfig
from trainer.config.simpletuner.lycoris_layer import LayerOptions
from trainer.config.targets import lycoris_targets


class LycorisLinear(nn.Module):
    """A frozen linear layer with a trainable LoKr or LoHa."""

    def __init__(self, base: nn.Linear, options: LayerOptions) -> None:
        """Start from an update of zero."""
        super().__init__()
        self.base_layer = base
        self.is_enabled = True
        device = base.weight.device
        self.factors = nn.ParameterDict(
            {
                name: nn.Parameter(torch.empty(shape, device=device))
                for name, shape in options.shapes(base.in_features, base.out_features).items()
            }
        )
        self._initialize()
        self.scale = scaled_by(self._layer(), options.alpha).scale

    def layer(self) -> LycorisLayer:
        """Return the layer, made of copies of the parameters in main memory."""
        copies = {name: factor.detach().float().cpu().clone() for name, factor in self.factors.items()}
        return scaled_by(lycoris_layer("", copies), self.scale * self._layer().dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., out), in the base's type, for ``x`` of shape (..., in)."""
        result: Tensor = self.base_layer(x)
        if not self.is_enabled:
            return result
        update = self._loha if "hada_w1_a" in self.factors else self._lokr
        return result + update(x.to(result.dtype))

    def _lokr(self, x: Tensor) -> Tensor:
        """Return W1 X W2^T for the groups X of ``x``."""
        dtype = x.dtype
        w1, w2 = self._product("lokr_w1") * self.scale, self.factors.get("lokr_w2")
        hidden = x.unflatten(-1, (w1.shape[1], -1))
        chain = (w2,) if w2 is not None else (self.factors["lokr_w2_b"], self.factors["lokr_w2_a"])
        for matrix in chain:
            hidden = F.linear(hidden, matrix.to(dtype))
        return torch.matmul(w1.to(dtype), hidden).flatten(-2)

    def _loha(self, x: Tensor) -> Tensor:
        """Return the product with a LoRA of rank r^2, or with the whole update where that is smaller."""
        a1, b1, a2, b2 = (self.factors[f"hada_w{i}_{part}"] for i in (1, 2) for part in ("a", "b"))
        if b1.shape[0] ** 2 > min(self.base_layer.in_features, self.base_layer.out_features):
            return F.linear(x, ((a1 @ b1) * (a2 @ b2) * self.scale).to(x.dtype))
        hidden = F.linear(x, pairs(b1, b2, -2).to(x.dtype))
        return F.linear(hidden, (pairs(a1, a2, -1) * self.scale).to(x.dtype))

    def _product(self, name: str) -> Tensor:
        whole: Tensor | None = self.factors.get(name)
        return self.factors[f"{name}_a"] @ self.factors[f"{name}_b"] if whole is None else whole

    def _layer(self) -> LycorisLayer:
        return lycoris_layer("", dict(self.factors.items()))

    @torch.no_grad()
    def _initialize(self) -> None:
        """Draw the initial values of ``lycoris-lora`` (``modules/lokr.py``, ``modules/loha.py``)."""
        last = {"lokr_w2", "lokr_w2_b", "hada_w2_a"}
        for name, factor in self.factors.items():
            if name in last:
                factor.zero_()
            elif name.startswith("hada"):
                factor.normal_(std=0.1 if name == "hada_w1_a" else 1.0)
            else:
                nn.init.kaiming_uniform_(factor, a=math.sqrt(5))


def lycoris_layers(transformer: nn.Module) -> list[tuple[str, LycorisLinear]]:
    """Return every layer that has a LoKr or LoHa, with its name."""
    return [(name, module) for name, module in transformer.named_modules() if isinstance(module, LycorisLinear)]


def inject_lycoris(transformer: nn.Module, config: LycorisConfig) -> None:
    """Put LoKr and LoHa modules around the layers that a configuration changes, and freeze the rest."""
    transformer.requires_grad_(False)
    for name, options in lycoris_targets(linear_modules(transformer), config).items():
        base = transformer.get_submodule(name)
        assert isinstance(base, nn.Linear)
        transformer.set_submodule(name, LycorisLinear(base, options))


def slot_rank(transformer: nn.Module, config: LycorisConfig) -> int:
    """Return the rank of the slot that an adapter of this configuration needs."""
    widths = linear_modules(transformer)
    return max(options.slot_rank(*widths[name]) for name, options in lycoris_targets(widths, config).items())
