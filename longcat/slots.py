"""Adapter slots: the low-rank updates of several adapters, ready for any row of a forward to use any of them.

For every linear layer that an adapter may change there are two buffers, made once: down (S, in, r) and up (S, r, out), with
S slots of rank up to r. Loading an adapter is a copy into one slot: no module changes, nothing is compiled again, other
slots are not touched. ``gather`` picks each row's updates out of the buffers, as ``longcat.blocks`` applies them.

A slot whose adapter uses DoRA also keeps, for each layer, what its rows' lengths follow from at any scale
(``longcat.dora``): vectors, made when it is loaded. Of several adapters of a picture, each rescales what those before it
have made, as PEFT does.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from longcat.blocks import Update, Updates
from longcat.dora import RowNorms, plain_weight, row_norms
from longcat.errors import AdapterError
from longcat.lora import LoraLayer, LoraWeights, check_lora, lora_targets
from longcat.threads import one_core

SlotUse = tuple[int, float]
"""A slot and the scale at which a picture uses it."""


@dataclass(frozen=True, kw_only=True)
class _Magnitude:
    """A layer's magnitude in a slot, (out,) in float32, and what it is held against."""

    magnitude: Tensor
    norms: RowNorms
    scale: float
    """alpha / rank: the norms are of the update without it."""

    def rescaling(self, use: float, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Gain and shift at the scale of a picture: the bias is not rescaled."""
        gain = self.magnitude / self.norms.at(use * self.scale)
        shift = torch.zeros_like(gain) if bias is None else bias.float() * (1 - gain)
        return gain, shift


class AdapterSlots:
    """Slots 0 to ``count - 1``. One more, always empty, stands for "no adapter"."""

    def __init__(
        self,
        transformer: nn.Module,
        *,
        count: int,
        rank: int,
        device: torch.device,
        dtype: torch.dtype,
        whole: bool = False,
    ) -> None:
        """All slots are empty.

        ``transformer``: before anything is put into it; its layers' names are what adapters go by. ``whole``: gather every
        layer at full rank whatever is loaded, so that shapes, and what was compiled for them, never change; DoRA, which
        would change what is computed, is refused then.
        """
        self.count = count
        self.rank = rank
        self._targets = targets = lora_targets(transformer)
        self._base = {name: transformer.get_submodule(name) for name in targets}
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
        self._magnitudes: list[dict[str, _Magnitude]] = [{} for _ in range(count + 1)]
        self._base_norms: dict[str, Tensor] = {}
        self._gathered: tuple[tuple[tuple[SlotUse, ...], ...], Updates | None] = ((), None)

    @property
    def nbytes(self) -> int:
        """Memory that the buffers take."""
        return sum(buffer.nbytes for buffers in (self._down, self._up) for buffer in buffers.values())

    def check(self, weights: LoraWeights) -> None:
        """Raise ``AdapterError`` unless these weights fit a slot."""
        if self._whole and weights.uses_dora:
            raise AdapterError("uses DoRA, which is not served by compiled forwards: serve without --compile")
        check_lora(weights, self._targets, max_rank=self.rank)

    @torch.no_grad()
    def load(self, slot: int, weights: LoraWeights) -> None:
        """Copy checked weights into a slot; what was there is gone."""
        layers = frozenset(weights.layers)
        for name in self._layers[slot] - layers:
            self._up[name][slot].zero_()
        for name, layer in weights.layers.items():
            self._load_layer(name, slot, layer, weights.alpha / layer.rank)
        self._magnitudes[slot] = {
            name: self._magnitude(name, layer, layer.magnitude, weights.alpha / layer.rank)
            for name, layer in weights.layers.items()
            if layer.magnitude is not None
        }
        self._layers[slot], self._ranks[slot] = layers, weights.rank
        self._gathered = ((), None)

    def _load_layer(self, name: str, slot: int, layer: LoraLayer, scale: float) -> None:
        down, up = self._down[name][slot], self._up[name][slot]
        down[:, : layer.rank] = layer.down.T
        down[:, layer.rank :] = 0
        up[: layer.rank] = layer.up.T if scale == 1 else layer.up.T.float() * scale
        up[layer.rank :] = 0

    def _magnitude(self, name: str, layer: LoraLayer, magnitude: Tensor, scale: float) -> _Magnitude:
        device = self._up[name].device
        weight = plain_weight(self._base[name])
        down, up = (matrix.to(weight.device, torch.float32) for matrix in (layer.down, layer.up))
        with one_core(weight.device):  # trainer and service, whatever their threads, come to the same bits
            if name not in self._base_norms:
                self._base_norms[name] = weight.square().sum(1)
            norms = row_norms(self._base_norms[name], weight @ down.T, down, up).to(device)
        return _Magnitude(magnitude=magnitude.to(device, torch.float32), norms=norms, scale=scale)

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
        """One for each run of rows whose adapters change this layer with the same rank, with or without DoRA.

        A row's matrices have the shapes that they have when it is alone: padded to a neighbour's rank, they would round
        differently.
        """
        first = 0
        for (rank, uses_dora), run in itertools.groupby(uses, lambda use: self._kind(name, use)):
            rows = slice(first, first + len(list(run)))
            first = rows.stop
            if not rank:
                continue
            picked = [use for use in uses[rows] if use is not None]
            yield Update(rows, *self._picked(name, picked, rank), self._rescaling(name, picked) if uses_dora else None)

    def _kind(self, name: str, use: SlotUse | None) -> tuple[int, bool]:
        """Rank of the layer's update, 0 if there is none, and whether it uses DoRA."""
        if use is None or name not in self._layers[use[0]]:
            return 0, False
        return self._ranks[use[0]], name in self._magnitudes[use[0]]

    def _rescaling(self, name: str, uses: Sequence[SlotUse]) -> tuple[Tensor, Tensor]:
        bias: Tensor | None = self._base[name].bias  # type: ignore[assignment]
        if bias is not None:
            bias = bias.to(self._up[name].device)
        pairs = [self._magnitudes[slot][name].rescaling(scale, bias) for slot, scale in uses]
        gains, shifts = zip(*pairs, strict=True)
        return torch.stack(gains)[:, None], torch.stack(shifts)[:, None]

    def _whole_update(self, name: str, uses: Sequence[SlotUse | None]) -> Update:
        return Update(None, *self._picked(name, [use or (self.count, 1.0) for use in uses], self.rank))

    def _picked(self, name: str, uses: Sequence[SlotUse], rank: int) -> tuple[Tensor, Tensor]:
        device, dtype = self._down[name].device, self._down[name].dtype
        slots = torch.tensor([slot for slot, _ in uses], device=device)
        down = self._down[name][:, :, :rank].index_select(0, slots)
        up = self._up[name][:, :rank].index_select(0, slots)
        if any(scale != 1 for _, scale in uses):
            up *= torch.tensor([scale for _, scale in uses], device=device, dtype=dtype)[:, None, None]
        return down, up
