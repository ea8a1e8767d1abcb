"""Layers that other programs fuse, or write in another order of rows, split into the modules of this model."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from longcat.adapter.foreign.module_names import HALVES_SWAPPED
from longcat.adapter.foreign.vectors import Targets
from longcat.adapter.weights.lora import Layer, LoraLayer
from longcat.adapter.weights.lycoris import LohaLayer, LycorisLayer
from longcat.errors import AdapterError


def split_layer(name: str, layer: Layer, modules: tuple[str, ...], targets: Targets) -> dict[str, Layer]:
    """Split a fused layer into its modules: rows of B, all with the same A. Exact."""
    if len(modules) == 1:
        return {modules[0]: _halves_swapped(name, layer) if name in HALVES_SWAPPED else layer}
    widths = [targets[module][1] for module in modules]
    if not isinstance(layer, LoraLayer):
        return _split_lycoris(name, layer, modules, widths)
    if layer.up.shape[0] != sum(widths):
        raise AdapterError(
            "adapter_fused_rows",
            "{module} has a B of shape {shape}; this model needs {rows} rows",
            remedy="import it for the model that it was made for",
            module=name,
            shape=str(tuple(layer.up.shape)),
            rows=sum(widths),
        )
    ups = torch.split(layer.up, widths)
    magnitudes = [None] * len(widths) if layer.magnitude is None else torch.split(layer.magnitude, widths)
    return {
        module: LoraLayer(layer.down, up, magnitude)
        for module, up, magnitude in zip(modules, ups, magnitudes, strict=True)
    }


def _split_lycoris(name: str, layer: LycorisLayer, modules: tuple[str, ...], widths: Sequence[int]) -> dict[str, Layer]:
    """Split the output rows of a fused LoKr or LoHa."""
    parts: dict[str, Layer] = {}
    for module, end, width in zip(modules, itertools.accumulate(widths), widths, strict=True):
        part = layer.rows(end - width, width) if layer.shape[0] == sum(widths) else None
        if part is None:
            raise _unsplit(name, layer, widths)
        parts[module] = part
    return parts


def _halves_swapped(name: str, layer: Layer) -> Layer:
    """Exchange the halves of the output rows."""

    def swapped(rows: Tensor) -> Tensor:
        return torch.cat([*rows.chunk(2)][::-1])

    if isinstance(layer, LoraLayer):
        magnitude = None if layer.magnitude is None else swapped(layer.magnitude)
        return replace(layer, up=swapped(layer.up), magnitude=magnitude)
    if isinstance(layer, LohaLayer):
        return replace(layer, w1_a=swapped(layer.w1_a), w2_a=swapped(layer.w2_a))
    if layer.w1[0].shape[0] % 2:
        half = layer.shape[0] // 2
        raise _unsplit(name, layer, [half, half])
    return replace(layer, w1=(swapped(layer.w1[0]), *layer.w1[1:]))


def _unsplit(name: str, layer: LycorisLayer, widths: Sequence[int]) -> AdapterError:
    return AdapterError(
        "adapter_fused_product",
        "changes {module} by a {kind} of shape {shape}, which does not split into the rows {rows} of its modules",
        remedy="train it on the modules one by one, or with a factor that divides them",
        module=name,
        kind=layer.kind,
        shape=str(layer.shape),
        rows=", ".join(map(str, widths)),
    )
