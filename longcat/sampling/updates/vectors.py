"""The vectors of the adapters in slots: changes of biases and of heads' norms, which ComfyUI's trainer writes.

They are added to the base's own, times the scale of an image. Several adapters of an image add up.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from longcat.sampling.updates.update import BiasUpdate, NormUpdate


class SlotVectors:
    """The vectors of each slot, by the module's name."""

    def __init__(self, transformer: nn.Module, *, count: int, device: torch.device, dtype: torch.dtype) -> None:
        """Start with none. ``transformer``: the unmodified model."""
        self._transformer = transformer
        self._device = device
        self._dtype = dtype
        self._slots: list[dict[str, Tensor]] = [{} for _ in range(count)]

    def load(self, slot: int, vectors: Mapping[str, Tensor]) -> None:
        """Replace the vectors of a slot."""
        self._slots[slot] = {name: vector.to(self._device, torch.float32) for name, vector in vectors.items()}

    def names(self, rows: Iterable[Sequence[tuple[int, float]]]) -> list[str]:
        """Return the modules whose vectors any row changes."""
        return sorted({name for uses in rows for slot, _ in uses for name in self._slots[slot]})

    def updates(self, name: str, rows: Sequence[Sequence[tuple[int, float]]]) -> Iterator[BiasUpdate | NormUpdate]:
        """Yield one update for each run of rows that change the vector of a module."""
        base = self._transformer.get_submodule(name).weight
        changes = [self._change(name, uses) for uses in rows]
        end = 0
        for is_changed, run in itertools.groupby(changes, lambda change: change is not None):
            found = list(run)
            first, end = end, end + len(found)
            if not is_changed:
                continue
            change_R1V = torch.stack([change for change in found if change is not None])[:, None]
            if isinstance(base, Tensor) and base.ndim == 1:
                weight = base.to(self._device, torch.float32) + change_R1V[:, None]
                yield NormUpdate(slice(first, end), weight.to(self._dtype))
            else:
                yield BiasUpdate(slice(first, end), change_R1V.to(self._dtype))

    def _change(self, name: str, uses: Sequence[tuple[int, float]]) -> Tensor | None:
        """Return the sum of the changes of one row, in float32; None without one."""
        changes = [scale * self._slots[slot][name] for slot, scale in uses if name in self._slots[slot]]
        return sum(changes[1:], changes[0]) if changes else None
