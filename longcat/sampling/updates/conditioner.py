"""The updates of adapters to the layers that depend on the time or the prompt alone, made from their weights.

They take no slot. A thread beside the step loop makes them before an image is admitted, and computes its conditioning.
"""

import threading
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from longcat.adapter.modules import is_conditioning
from longcat.adapter.weights.lora import LoraLayer, LoraWeights, served
from longcat.sampling.conditioning import UNCHANGED, ConditioningUpdates, Layers
from longcat.sampling.updates.magnitudes import ColumnMagnitude, Magnitudes, RowMagnitude
from longcat.sampling.updates.update import BiasUpdate, InputUpdate, LinearUpdate, Rescaling, Update

_MAX_ADAPTERS = 8
"""Adapters whose matrices stay on the device: at LongCat-Image's size and rank 16, about 25 MB each in bfloat16."""
_ROW = slice(0, 1)


class AdapterUse(NamedTuple):
    """An adapter as an image uses it."""

    key: Hashable
    """Equal for the same weights."""
    weights: LoraWeights
    scale: float


def conditioning_part(weights: LoraWeights) -> LoraWeights:
    """Return the layers and vectors of an adapter that depend on the time or the prompt alone."""
    layers = {name: layer for name, layer in weights.layers.items() if is_conditioning(name)}
    vectors = {name: vector for name, vector in weights.vectors.items() if is_conditioning(name)}
    columns = {
        modules: magnitude for modules, magnitude in weights.column_magnitudes.items() if is_conditioning(modules[0])
    }
    return LoraWeights(alpha=weights.alpha, layers=layers, vectors=vectors, column_magnitudes=columns)


class _Prepared(NamedTuple):
    """A layer's matrices on the device."""

    kind: str
    matrices: tuple[Tensor, ...]
    magnitude: RowMagnitude | None
    column: ColumnMagnitude | None

    def updates(self, name: str, scale: float, magnitudes: Magnitudes) -> Iterator[LinearUpdate]:
        """Yield the updates of module ``name`` at a scale."""
        matrices, dtype = self.matrices, self.matrices[0].dtype
        if self.column is not None:
            gain = self.column.gain(scale)
            yield InputUpdate(_ROW, (gain - 1).to(dtype))
            matrices = (matrices[0] * gain.to(dtype)[:, None], *matrices[1:])
        scales_R11 = None if scale == 1 else torch.tensor(scale, dtype=dtype, device=matrices[0].device).view(1, 1, 1)
        yield Update(_ROW, self.kind, tuple(matrix[None] for matrix in matrices), scales_R11=scales_R11)
        if self.magnitude is not None:
            gain, shift = magnitudes.rescaling(name, self.magnitude, scale)
            yield Rescaling(_ROW, gain[None, None], shift[None, None])


class Conditioner:
    """Makes the updates of a model's conditioning layers. Any thread may call it."""

    def __init__(self, transformer: nn.Module, *, device: torch.device, dtype: torch.dtype) -> None:
        """``transformer``: the unmodified model, whose layers' names adapters use."""
        self._device = device
        self._dtype = dtype
        self._magnitudes = Magnitudes(transformer, device)
        self._lock = threading.Lock()
        self._prepared: OrderedDict[Hashable, Mapping[str, _Prepared]] = OrderedDict()

    def updates(self, uses: Sequence[AdapterUse]) -> ConditioningUpdates:
        """Return the updates of one image's adapters. Nothing is computed before its ``layers`` are read."""
        parts = [use._replace(weights=conditioning_part(use.weights)) for use in uses]
        names = frozenset(name for use in parts for name in (*use.weights.layers, *use.weights.vectors))
        if not names:
            return UNCHANGED
        key = tuple((use.key, use.scale) for use in parts)
        return ConditioningUpdates(key, names, lambda: self._layers(parts))

    @torch.no_grad()
    def _layers(self, uses: Sequence[AdapterUse]) -> Layers:
        layers: dict[str, list[LinearUpdate]] = {}
        for use in uses:
            for name, prepared in self._prepare(use).items():
                layers.setdefault(name, []).extend(prepared.updates(name, use.scale, self._magnitudes))
        for name, bias in self._biases(uses).items():
            layers.setdefault(name, []).append(BiasUpdate(_ROW, bias[None, None].to(self._dtype)))
        return layers

    def _prepare(self, use: AdapterUse) -> Mapping[str, _Prepared]:
        with self._lock:  # an adapter that two threads need is prepared once
            if use.key not in self._prepared:
                columns = self._magnitudes.columns_of(use.weights)
                self._prepared[use.key] = {
                    name: self._prepared_layer(name, use.weights, columns.get(name)) for name in use.weights.layers
                }
            self._prepared.move_to_end(use.key)
            if len(self._prepared) > _MAX_ADAPTERS:
                self._prepared.popitem(last=False)
            return self._prepared[use.key]

    def _prepared_layer(self, name: str, weights: LoraWeights, column: ColumnMagnitude | None) -> _Prepared:
        layer = weights.layers[name]
        matrices = tuple(matrix.to(self._device, self._dtype).contiguous() for matrix in served(layer, weights.alpha))
        return _Prepared(
            layer.kind,
            matrices,
            self._magnitudes.of(name, layer, weights.alpha / layer.rank) if isinstance(layer, LoraLayer) else None,
            column,
        )

    def _biases(self, uses: Sequence[AdapterUse]) -> dict[str, Tensor]:
        """Return the sums of the changes of biases, (out,) in float32."""
        sums: dict[str, Tensor] = {}
        for _, weights, scale in uses:
            for name, vector in weights.vectors.items():
                change = scale * vector.to(self._device, torch.float32)
                sums[name] = sums[name] + change if name in sums else change
        return sums
