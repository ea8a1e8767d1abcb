"""Adapter slots: the low-rank updates of several adapters, ready for any row of a forward to use any of them.

For every linear layer that an adapter may change there are two buffers, made once: down (S, in, r) and up (S, r, out), with
S slots of rank up to r. Loading an adapter is a copy into one slot: no module changes, nothing is compiled again, other
slots are not touched. ``gather`` picks each row's updates out of the buffers, as ``longcat.forward`` wants them.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from longcat.forward import Update, Updates
from longcat.lora import LoraLayer, LoraWeights, check_lora

SlotUse = tuple[int, float]
"""A slot and the scale at which a picture uses it."""


class AdapterSlots:
    """Slots 0 to ``count - 1``. One more, always empty, stands for "no adapter"."""

    def __init__(
        self,
        targets: Mapping[str, tuple[int, int]],
        *,
        count: int,
        rank: int,
        device: torch.device,
        dtype: torch.dtype,
        whole: bool = False,
    ) -> None:
        """All slots are empty.

        ``targets``: as ``lora_targets`` gives them. ``whole``: gather every layer at full rank whatever is loaded, so
        that shapes, and what was compiled for them, never change.
        """
        self.count = count
        self.rank = rank
        self._targets = dict(targets)
        self._whole = whole
        self._down, self._up = (
            {name: torch.zeros(count + 1, *shape, device=device, dtype=dtype) for name, shape in shapes.items()}
            for shapes in (
                {name: (width, rank) for name, (width, _) in targets.items()},
                {name: (rank, width) for name, (_, width) in targets.items()},
            )
        )
        self._layers: list[frozenset[str]] = [frozenset()] * (count + 1)
        self._ranks = [0] * (count + 1)
        self._gathered: tuple[tuple[tuple[SlotUse, ...], ...], Updates | None] = ((), None)

    @property
    def nbytes(self) -> int:
        """Memory that the buffers take."""
        return sum(buffer.nbytes for buffers in (self._down, self._up) for buffer in buffers.values())

    def check(self, weights: LoraWeights) -> None:
        """Raise ``AdapterError`` unless these weights fit a slot."""
        check_lora(weights, self._targets, max_rank=self.rank)

    @torch.no_grad()
    def load(self, slot: int, weights: LoraWeights) -> None:
        """Copy checked weights into a slot; what was there is gone."""
        layers = frozenset(weights.layers)
        for name in self._layers[slot] - layers:
            self._up[name][slot].zero_()
        for name, layer in weights.layers.items():
            self._load_layer(name, slot, layer, weights.alpha / layer.rank)
        self._layers[slot], self._ranks[slot] = layers, weights.rank
        self._gathered = ((), None)

    def _load_layer(self, name: str, slot: int, layer: LoraLayer, scale: float) -> None:
        down, up = self._down[name][slot], self._up[name][slot]
        down[:, : layer.rank] = layer.down.T
        down[:, layer.rank :] = 0
        up[: layer.rank] = layer.up.T if scale == 1 else layer.up.T.float() * scale
        up[layer.rank :] = 0

    @torch.no_grad()
    def gather(self, rows: Sequence[tuple[SlotUse, ...]]) -> Updates | None:
        """The updates of rows that use these slots at these scales; None if none uses any."""
        key = tuple(rows)
        if self._gathered[0] != key:
            self._gathered = (key, self._gather(key))
        return self._gathered[1]

    def _gather(self, rows: tuple[tuple[SlotUse, ...], ...]) -> Updates | None:
        if not any(rows):
            return None
        updates: dict[str, dict[str, list[Update]]] = {}
        for several in itertools.zip_longest(*rows):  # each row's first adapter, then each row's second, ...
            for name in self._targets:
                block = ".".join(name.split(".", 2)[:2])
                parts = [self._whole_update(name, several)] if self._whole else self._updates(name, several)
                updates.setdefault(block, {}).setdefault(name[len(block) + 1 :], []).extend(parts)
        return updates

    def _updates(self, name: str, uses: Sequence[SlotUse | None]) -> Iterator[Update]:
        """One for each run of rows whose adapters change this layer with the same rank.

        A row's matrices have the shapes that they have when it is alone: padded to a neighbour's rank, they would round
        differently.
        """
        ranks = [self._ranks[use[0]] if use is not None and name in self._layers[use[0]] else 0 for use in uses]
        first = 0
        for rank, run in itertools.groupby(ranks):
            rows = slice(first, first + len(list(run)))
            first = rows.stop
            if rank:
                yield rows, *self._picked(name, [use for use in uses[rows] if use is not None], rank)

    def _whole_update(self, name: str, uses: Sequence[SlotUse | None]) -> Update:
        return None, *self._picked(name, [use or (self.count, 1.0) for use in uses], self.rank)

    def _picked(self, name: str, uses: Sequence[SlotUse], rank: int) -> tuple[Tensor, Tensor]:
        device, dtype = self._down[name].device, self._down[name].dtype
        slots = torch.tensor([slot for slot, _ in uses], device=device)
        down = self._down[name][:, :, :rank].index_select(0, slots)
        up = self._up[name][:, :rank].index_select(0, slots)
        if any(scale != 1 for _, scale in uses):
            up *= torch.tensor([scale for _, scale in uses], device=device, dtype=dtype)[:, None, None]
        return down, up
