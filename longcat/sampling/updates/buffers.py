"""The buffers of adapter slots: one for each linear layer that an adapter may change, (S, r (in + out)).

A layer's matrices lie in its slot one after another: a LoRA's two, or the factors of a LoKr or LoHa, which fit if they have
no more numbers than a LoRA of rank r.

Shapes: S slots, r the highest rank of a slot.
"""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from longcat.adapter.weights.lora import Layer, LoraLayer, served
from longcat.adapter.weights.lycoris import LohaLayer
from longcat.adapter.weights.placement import moved


class Layout(NamedTuple):
    """The matrices of a layer in a slot."""

    kind: str
    shapes: tuple[tuple[int, int], ...]
    uses_dora: bool = False
    rescales_input: bool = False
    """True with DoRA over the input axis."""


class SlotBuffers:
    """The buffers of a model's layers. Each is allocated once."""

    def __init__(
        self,
        widths: Mapping[str, tuple[int, int]],
        *,
        count: int,
        rank: int,
        device: torch.device,
        dtype: torch.dtype,
        whole: bool,
    ) -> None:
        """Start without buffers. ``widths``: in and out, by the layer's name. ``whole``: store every LoRA at full rank."""
        self._widths = widths
        self._count = count
        self._rank = rank
        self._device = device
        self._dtype = dtype
        self._whole = whole
        self.tensors: dict[str, Tensor] = {}
        """The buffers, each (S, numbers)."""
        self._filled: list[set[str]] = [set() for _ in range(count)]
        """The layers whose buffers have numbers in a slot, which compiled forwards read whatever its layouts are."""

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers."""
        return sum(buffer.nbytes for buffer in self.tensors.values())

    def allocate(self, names: Iterable[str]) -> None:
        """Allocate the buffers of layers that have none."""
        for name in names:
            if name not in self.tensors:
                numbers = self._rank * sum(self._widths[name])
                self.tensors[name] = torch.zeros(self._count, numbers, device=self._device, dtype=self._dtype)

    def load(self, slot: int, layers: Mapping[str, Layer], alpha: float) -> dict[str, Layout]:
        """Copy layers, whose buffers are allocated, into a slot, and clear its other layers; return the layouts."""
        for name in self._filled[slot] - layers.keys():
            self.tensors[name][slot].zero_()
        self._filled[slot] |= layers.keys()
        layouts = {name: self._load_layer(name, slot, layer, alpha) for name, layer in layers.items()}
        self._filled[slot] = set(layers)
        return layouts

    def _load_layer(self, name: str, slot: int, layer: Layer, alpha: float) -> Layout:
        layer = moved(layer, self._device)
        matrices, kind = served(layer, alpha), layer.kind
        if isinstance(layer, LohaLayer) and layer.dim**2 <= self._rank:
            matrices, kind = layer.as_lora(), LoraLayer.kind
        if self._whole:
            down, up = matrices
            missing = self._rank - layer.rank
            matrices = pad(down, (0, missing)), pad(up, (0, 0, 0, missing))
        buffer, end = self.tensors[name][slot], 0
        for matrix in matrices:
            begin, end = end, end + matrix.numel()
            buffer[begin:end].view(matrix.shape).copy_(matrix)
        shapes = tuple((matrix.shape[0], matrix.shape[1]) for matrix in matrices)
        return Layout(kind, shapes, layer.magnitude is not None)

    def matrices(self, name: str, shapes: Iterable[tuple[int, int]], *, slot: int | None = None) -> tuple[Tensor, ...]:
        """Return views of a layer's matrices in all slots, each (S, ., .), or in one, each (1, ., .)."""
        buffer, end, views = self.tensors[name], 0, []
        numbers = buffer if slot is None else buffer[slot : slot + 1]
        for shape in shapes:
            begin, end = end, end + math.prod(shape)
            views.append(numbers[:, begin:end].unflatten(-1, shape))
        return tuple(views)

    def whole_matrices(self, name: str) -> tuple[Tensor, ...]:
        """Return views of the two matrices of a LoRA at full rank, in all slots."""
        width_in, width_out = self._widths[name]
        return self.matrices(name, ((width_in, self._rank), (self._rank, width_out)))
