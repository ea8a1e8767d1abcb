"""The magnitudes of DoRA as they are served: what the norms of a layer's rows are replaced by, at any scale."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from longcat.adapter.modules import is_conditioning
from longcat.adapter.weights.dora import Norms, column_norms, plain_weight, row_norms
from longcat.adapter.weights.lora import Layer, LoraLayer, LoraWeights
from longcat.model.device.threads import one_core


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
        """``device``: the device that computes with the magnitudes."""
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
        down, up = (_copied(matrix, weight.device) for matrix in (layer.down, layer.up))
        with one_core(weight.device):  # trainer and service get the same bits with any number of threads
            if name not in self._base_norms:
                self._base_norms[name] = weight.square().sum(1)
            norms = row_norms(self._base_norms[name], weight @ down.T, down, up).to(self._device)
        return RowMagnitude(magnitude=_copied(layer.magnitude, self._device), norms=norms, scale=scale)

    @torch.no_grad()
    def columns_of(self, weights: LoraWeights) -> dict[str, ColumnMagnitude]:
        """Return the magnitudes of columns of an adapter, by each of their modules."""
        found: dict[str, ColumnMagnitude] = {}
        for modules, magnitude in weights.column_magnitudes.items():
            norms = self._column_norms(modules, weights).to(self._device)
            column = ColumnMagnitude(
                magnitude=_copied(magnitude, self._device),
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
            down, up = (_copied(matrix, weight.device) for matrix in (layer.down, layer.up))
            parts.append((weight, down, up))
        with one_core(parts[0][0].device):
            return column_norms(parts)

    def rescaling(self, name: str, magnitude: RowMagnitude, use: float) -> tuple[Tensor, Tensor]:
        """Return gain and shift of module ``name`` at an image's scale, each (out,)."""
        bias: Tensor | None = self._transformer.get_submodule(name).bias  # type: ignore[assignment]
        return magnitude.rescaling(use, None if bias is None else bias.to(self._device, non_blocking=True))


def _copied(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor in float32 on a device; from pinned memory, the copy runs beside the host."""
    return tensor.to(device, torch.float32, non_blocking=True)


_KEPT_SCALES = 8
"""Scales of an adapter whose gains are kept: they are small beside a slot."""


@dataclass(frozen=True, kw_only=True)
class Gains:
    """The gains of an adapter's layers at one scale, by module."""

    rows: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Gain and shift, each (out,)."""
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    """Gain of the input, (in,)."""


class SlotMagnitudes:
    """The magnitudes of the adapter in one slot, and its gains at the scales that images used last."""

    def __init__(self, magnitudes: Magnitudes) -> None:
        """Start without an adapter."""
        self._magnitudes = magnitudes
        self.clear()

    def clear(self) -> None:
        """Remove the adapter."""
        self._rows: Mapping[str, RowMagnitude] = {}
        self._columns: Mapping[str, ColumnMagnitude] = {}
        self._gains: OrderedDict[float, Gains] = OrderedDict()

    def load(self, weights: LoraWeights, layers: Mapping[str, Layer]) -> Mapping[str, ColumnMagnitude]:
        """Take the magnitudes of an adapter, of which ``layers`` are in the slot; return those of columns.

        The gains at scale 1 are made here, those at other scales by the first forward that uses them.
        """
        columns = {
            modules: magnitude
            for modules, magnitude in weights.column_magnitudes.items()
            if not is_conditioning(modules[0])
        }
        self._columns = self._magnitudes.columns_of(replace(weights, column_magnitudes=columns))
        self._rows = {
            name: magnitude
            for name, layer in layers.items()
            if isinstance(layer, LoraLayer)
            and (magnitude := self._magnitudes.of(name, layer, weights.alpha / layer.rank))
        }
        self.at(1.0)
        return self._columns

    def at(self, scale: float) -> Gains:
        """Return the gains at an image's scale."""
        if scale not in self._gains:
            rows = {name: self._magnitudes.rescaling(name, row, scale) for name, row in self._rows.items()}
            columns = {name: column.gain(scale) for name, column in self._columns.items()}
            self._gains[scale] = Gains(rows=rows, columns=columns)
            if len(self._gains) > _KEPT_SCALES:
                self._gains.popitem(last=False)
        self._gains.move_to_end(scale)
        return self._gains[scale]
