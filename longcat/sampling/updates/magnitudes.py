"""The magnitudes of DoRA as they are served: what the norms of a layer's rows are replaced by, at any scale."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from longcat.adapter.weights.dora import Norms, column_norms, plain_weight, row_norms
from longcat.adapter.weights.lora import LoraLayer, LoraWeights
from longcat.sampling.threads import one_core


@dataclass(frozen=True, kw_only=True)
class RowMagnitude:
    """A layer's DoRA magnitude, (out,) in float32, and the terms of the norms that it replaces."""

    magnitude: Tensor
    norms: Norms
    scale: float
    """alpha / rank, which the norms' terms do not include."""

    def rescaling(self, use: float, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return gain and shift at an image's scale; the shift undoes the rescaling of the bias."""
        gain = self.magnitude / self.norms.at(use * self.scale)
        shift = torch.zeros_like(gain) if bias is None else bias.float() * (1 - gain)
        return gain, shift


@dataclass(frozen=True, kw_only=True)
class ColumnMagnitude:
    """A DoRA over the input axis: its magnitudes, (in,) in float32, and the terms of the norms that they replace."""

    magnitude: Tensor
    norms: Norms
    scale: float
    """alpha / rank, which the norms' terms do not include."""

    def gain(self, use: float) -> Tensor:
        """Return the gain of the layer's input at an image's scale, (in,)."""
        return self.magnitude / self.norms.at(use * self.scale)


class Magnitudes:
    """Makes the magnitudes of a model's layers. The norms of a base weight's rows are computed once."""

    def __init__(self, transformer: nn.Module, device: torch.device) -> None:
        """``device``: where magnitudes are used."""
        self._transformer = transformer
        self._device = device
        self._base_norms: dict[str, Tensor] = {}

    @torch.no_grad()
    def of(self, name: str, layer: LoraLayer, scale: float) -> RowMagnitude | None:
        """Return the magnitude of an adapter's layer, which is on module ``name``; None without DoRA.

        ``scale``: alpha / rank.
        """
        if layer.magnitude is None:
            return None
        weight = plain_weight(self._transformer.get_submodule(name))
        down, up = (matrix.to(weight.device, torch.float32) for matrix in (layer.down, layer.up))
        with one_core(weight.device):  # trainer and service get the same bits with any number of threads
            if name not in self._base_norms:
                self._base_norms[name] = weight.square().sum(1)
            norms = row_norms(self._base_norms[name], weight @ down.T, down, up).to(self._device)
        return RowMagnitude(magnitude=layer.magnitude.to(self._device, torch.float32), norms=norms, scale=scale)

    @torch.no_grad()
    def columns_of(self, weights: LoraWeights) -> dict[str, ColumnMagnitude]:
        """Return the magnitudes of columns of an adapter, by each of their modules."""
        found: dict[str, ColumnMagnitude] = {}
        for modules, magnitude in weights.column_magnitudes.items():
            norms = self._column_norms(modules, weights).to(self._device)
            column = ColumnMagnitude(
                magnitude=magnitude.to(self._device, torch.float32),
                norms=norms,
                scale=weights.alpha / weights.layers[modules[0]].rank,
            )
            found |= dict.fromkeys(modules, column)
        return found

    def _column_norms(self, modules: tuple[str, ...], weights: LoraWeights) -> Norms:
        parts = []
        for module in modules:
            layer, weight = weights.layers[module], plain_weight(self._transformer.get_submodule(module))
            assert isinstance(layer, LoraLayer)
            down, up = (matrix.to(weight.device, torch.float32) for matrix in (layer.down, layer.up))
            parts.append((weight, down, up))
        with one_core(parts[0][0].device):
            return column_norms(parts)

    def rescaling(self, name: str, magnitude: RowMagnitude, use: float) -> tuple[Tensor, Tensor]:
        """Return gain and shift of module ``name`` at an image's scale, each (out,)."""
        bias: Tensor | None = self._transformer.get_submodule(name).bias  # type: ignore[assignment]
        return magnitude.rescaling(use, None if bias is None else bias.to(self._device))
