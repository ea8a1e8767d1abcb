"""The memory that holds an adapter's tensors: a device's, or pinned memory, which a GPU copies from by itself."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from longcat.adapter.weights.lora import Layer, LoraWeights

_BLOCK_BYTES = 32 * 2**20
"""A power of two, as torch rounds each block of pinned memory up to one."""
_ALIGNMENT_BYTES = 16
_Held = TypeVar("_Held", Layer, LoraWeights)


def moved(layer: Layer, device: torch.device) -> Layer:
    """Return a layer on a device; from pinned memory, the copy runs beside the host."""
    return _mapped(layer, lambda tensor: tensor.to(device, non_blocking=True))


def pinned(weights: LoraWeights) -> LoraWeights:
    """Return a copy of an adapter in pinned memory: a few large blocks, because each takes the driver long to pin."""
    free = torch.empty(0, dtype=torch.uint8)
    remaining = sum(_padded(tensor.nbytes) for tensor in _tensors(weights))

    def copy(tensor: Tensor) -> Tensor:
        nonlocal free, remaining
        size = _padded(tensor.nbytes)
        if len(free) < size:
            free = torch.empty(max(size, min(remaining, _BLOCK_BYTES)), dtype=torch.uint8, pin_memory=True)
        taken, free, remaining = free[: tensor.nbytes], free[size:], remaining - size
        return taken.view(tensor.dtype).view(tensor.shape).copy_(tensor)

    return _mapped(weights, copy)


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES


def _tensors(weights: LoraWeights) -> Iterator[Tensor]:
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    _mapped(weights, keep)
    yield from found


def _mapped(held: _Held, change: Callable[[Tensor], Tensor]) -> _Held:
    """Return a copy of a dataclass in which every tensor, also in tuples, mappings and dataclasses, is changed."""

    def within(value: Any) -> Any:
        if isinstance(value, Tensor):
            return change(value)
        if isinstance(value, tuple):
            return tuple(map(within, value))
        if isinstance(value, dict):
            return {key: within(part) for key, part in value.items()}
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            parts = {field.name: within(getattr(value, field.name)) for field in dataclasses.fields(value)}
            return dataclasses.replace(value, **parts)
        return value

    made: _Held = within(held)
    return made
