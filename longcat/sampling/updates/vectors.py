"""The vectors of the adapters in slots: changes of biases and of heads' norms, which ComfyUI's trainer writes.

They are added to the base's own, times the scale of an image. Several adapters of an image add up.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from longcat.sampling.updates.update import BiasUpdate, NormUpdate

_KEPT_ROWS = 4096
"""Vectors of rows that are kept, each a few KiB: those of dozens of adapters."""


class SlotVectors:
    """The vectors of each slot, by the module's name."""

    def __init__(self, transformer: nn.Module, *, count: int, device: torch.device, dtype: torch.dtype) -> None:
        """Start with none. ``transformer``: the unmodified model."""
        self._transformer = transformer
        self._device = device
        self._dtype = dtype
        self._slots: list[dict[str, Tensor]] = [{} for _ in range(count)]
        self._rows: dict[tuple[str, tuple[tuple[int, float], ...]], Tensor] = {}
        """The vector that a row gets at a module, by its adapters: made once, however often the rows of a forward change."""

    def load(self, slot: int, vectors: Mapping[str, Tensor]) -> None:
        """Replace the vectors of a slot."""
        self._slots[slot] = {
            name: vector.to(self._device, torch.float32, non_blocking=True) for name, vector in vectors.items()
        }
        for key in [key for key in self._rows if any(used == slot for used, _ in key[1])]:
            del self._rows[key]
        for name in vectors:
            self._row(name, ((slot, 1.0),))

    def names(self, rows: Iterable[Sequence[tuple[int, float]]]) -> list[str]:
        """Return the modules whose vectors any row changes."""
        return sorted({name for uses in rows for slot, _ in uses for name in self._slots[slot]})

    def updates(self, name: str, rows: Sequence[Sequence[tuple[int, float]]]) -> Iterator[BiasUpdate | NormUpdate]:
        """Yield one update for each run of rows that change the vector of a module."""
        update = NormUpdate if self._is_norm(name) else BiasUpdate
        made = [self._row(name, tuple(use for use in uses if name in self._slots[use[0]])) for uses in rows]
        end = 0
        for is_changed, run in itertools.groupby(made, lambda row: row is not None):
            found = list(run)
            first, end = end, end + len(found)
            if is_changed:
                vectors = [vector for vector in found if vector is not None]
                yield update(slice(first, end), vectors[0] if len(vectors) == 1 else torch.cat(vectors))

    def _is_norm(self, name: str) -> bool:
        weight = self._transformer.get_submodule(name).weight
        return isinstance(weight, Tensor) and weight.ndim == 1

    def _row(self, name: str, uses: tuple[tuple[int, float], ...]) -> Tensor | None:
        """Return a bias's change (1, 1, out), or a norm's weight (1, 1, 1, width), for one row; None without adapters."""
        if not uses:
            return None
        if (name, uses) not in self._rows:
            if len(self._rows) >= _KEPT_ROWS:
                self._rows.clear()
            changes = [scale * self._slots[slot][name] for slot, scale in uses]
            vector = sum(changes[1:], changes[0])
            if self._is_norm(name):
                base: Any = self._transformer.get_submodule(name).weight
                vector = (base.to(self._device, torch.float32) + vector)[None]
            self._rows[name, uses] = vector[None, None].to(self._dtype)
        return self._rows[name, uses]
