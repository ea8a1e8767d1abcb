"""Adapter slots: the updates of several adapters, any of which any row of a forward can use.

Every linear layer that an adapter may change has a buffer, allocated once (``updates.buffers``). Loading an adapter is a
copy into one slot: no module changes, nothing is recompiled, other slots stay as they are. On a GPU the copies run beside
its computation, on a stream of their own; a forward waits for those of its own rows' adapters alone, on the device and not
on the host. ``gather`` returns views of the slots, each for the rows that use it, and ``longcat.sampling.blocks`` applies
them: at most one layer of each row's adapter is copied at a time.

The buffers of the embedder of image tokens and the output layer are allocated once an adapter changes them. Layers that
depend on the time or the prompt alone have none: their updates are made from the weights (``updates.conditioner``).

A slot whose adapter uses DoRA also keeps vectors for each layer, computed at loading, that give the norms of its rows at
any scale (``longcat.adapter.weights.dora``), and the gains at the scales that images use. Of several adapters of an image,
each rescales the result of those before it, as in PEFT.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from longcat.adapter.manifest import Manifest
from longcat.adapter.modules import (
    IMAGE_EMBEDDER,
    OUTPUT,
    adaptable_modules,
    is_blocks_own,
    is_conditioning,
    linear_modules,
)
from longcat.adapter.verification import check_lora, check_rank
from longcat.adapter.weights.lora import LoraLayer, LoraWeights
from longcat.adapter.weights.lycoris import LohaLayer
from longcat.adapter.weights.placement import pinned
from longcat.errors import AdapterError
from longcat.sampling.conditioning import ConditioningUpdates
from longcat.sampling.updates.buffers import Layout, SlotBuffers
from longcat.sampling.updates.conditioner import AdapterUse, Conditioner, conditioning_part
from longcat.sampling.updates.copy_stream import CopyStream
from longcat.sampling.updates.magnitudes import Magnitudes, SlotMagnitudes
from longcat.sampling.updates.update import (
    BESIDE_BLOCKS,
    EVERY_ROW,
    InputUpdate,
    LinearUpdate,
    Rescaling,
    Update,
    Updates,
)
from longcat.sampling.updates.vectors import SlotVectors

_HEADER_BYTES = 16 * 2**20
"""More than the header of any adapter has."""

SlotUse = tuple[int, float]
"""A slot and the scale at which an image uses it."""


_Value = TypeVar("_Value")


class AdapterSlots:
    """Slots 0 to ``count - 1``, and one more, always empty, for rows without an adapter."""

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
        """Allocate empty slots.

        ``transformer``: the unmodified model, whose layers' names adapters use. ``whole``: return every layer at full rank
        whatever is loaded, so that shapes never change and compiled code stays valid; DoRA, which would change the
        computation, is then rejected.
        """
        self.count = count
        self.rank = rank
        self._dtype = dtype
        self._device = device
        self._targets = targets = linear_modules(transformer)
        self._modules = adaptable_modules(transformer)
        self._whole = whole
        self.buffers = SlotBuffers(targets, count=count + 1, rank=rank, device=device, dtype=dtype, whole=whole)
        self.buffers.allocate(filter(is_blocks_own, targets))
        self._layouts: list[dict[str, Layout]] = [{} for _ in range(count + 1)]
        self._kinds: list[tuple[object, ...]] = [()] * (count + 1)
        magnitudes = Magnitudes(transformer, device)
        self._magnitudes = [SlotMagnitudes(magnitudes) for _ in range(count + 1)]
        self._copy_stream = CopyStream(device)
        self._copies: dict[int, torch.Event] = {}
        """The copies to slots that no forward has waited for yet."""
        self._vectors = SlotVectors(transformer, count=count + 1, device=device, dtype=dtype)
        self.conditioner = Conditioner(transformer, device=device, dtype=dtype)
        self._loaded: dict[int, tuple[object, LoraWeights]] = {}
        """The part of each slot's adapter that has no buffers, with a key of its own."""
        self._gathered: tuple[tuple[tuple[SlotUse, ...], ...], Updates | None] = ((), None)

    def staged(self, weights: LoraWeights) -> LoraWeights:
        """Return weights from which ``load`` copies without a wait: on a GPU, in pinned memory. Any thread may call it."""
        return pinned(weights) if self._device.type == "cuda" else weights

    def check(self, weights: LoraWeights) -> None:
        """Raise ``AdapterError`` unless these weights fit a slot."""
        if self._whole and weights.uses_dora:
            raise AdapterError(
                "adapter_dora_compiled",
                "the adapter uses DoRA, which compiled forwards do not compute",
                remedy="serve without --compile",
            )
        if self._whole and weights.kind != "lora":
            raise AdapterError(
                "adapter_kind_compiled",
                "the adapter is of the kind {kind}, which compiled forwards do not compute",
                remedy="serve without --compile",
                kind=weights.kind,
            )
        if self._whole and weights.vectors:
            raise AdapterError(
                "adapter_vectors_compiled",
                "the adapter changes biases or norms, such as that of {module}, which compiled forwards do not compute",
                remedy="serve without --compile",
                module=next(iter(weights.vectors)),
            )
        check_lora(weights, self._modules, max_rank=self.rank, dtype=self._dtype)

    def check_manifest(self, manifest: Manifest) -> None:
        """Raise ``AdapterError`` if the weights that a manifest describes fit no slot."""
        check_rank(manifest.rank, self.rank)
        vectors = 2  # a magnitude and a bias; one of the input's width if the magnitudes are of columns
        numbers = sum(
            self.rank * (width_in + width_out) + width_in + vectors * width_out
            for width_in, width_out in self._targets.values()
        )
        most = _HEADER_BYTES + torch.float64.itemsize * numbers
        if manifest.weights.size_bytes > most:
            raise AdapterError(
                "adapter_file_too_large",
                "its file has {size} bytes; no adapter of rank {rank} has more than {most}",
                remedy="check what was published",
                size=manifest.weights.size_bytes,
                rank=self.rank,
                most=most,
            )

    @torch.no_grad()
    def load(self, slot: int, weights: LoraWeights) -> None:
        """Copy checked weights into a slot, replacing its adapter. If this raises, the slot is empty."""
        layers = {name: layer for name, layer in weights.layers.items() if not is_conditioning(name)}
        vectors = {name: vector for name, vector in weights.vectors.items() if not is_conditioning(name)}
        self._empty(slot)
        self.buffers.allocate(layers)
        with self._copy_stream.copying():
            columns = self._magnitudes[slot].load(weights, layers)
            layouts = {
                name: layout._replace(rescales_input=name in columns)
                for name, layout in self.buffers.load(slot, layers, weights.alpha).items()
            }
            self._vectors.load(slot, vectors)
        if event := self._copy_stream.copied():
            self._copies[slot] = event
        self._layouts[slot] = layouts
        self._kinds[slot] = next(iter(layouts.values()), ())
        self._loaded[slot] = (object(), conditioning_part(weights))

    def _empty(self, slot: int) -> None:
        self._gathered = ((), None)
        self._layouts[slot] = {}
        self._kinds[slot] = ()
        self._magnitudes[slot].clear()
        self._vectors.load(slot, {})
        self._loaded.pop(slot, None)

    @torch.no_grad()
    def gather(self, rows: Sequence[tuple[SlotUse, ...]]) -> Updates | None:
        """Return the updates of rows that use these slots at these scales; None if no row uses any."""
        key = tuple(rows)
        for slot in {slot for uses in key for slot, _ in uses}:
            if event := self._copies.pop(slot, None):
                self._copy_stream.wait(event)
        if self._gathered[0] != key:
            self._gathered = (key, self._gather(key))
        return self._gathered[1]

    def _gather(self, rows: tuple[tuple[SlotUse, ...], ...]) -> Updates | None:
        if not any(rows):
            return None
        updates: dict[str, dict[str, list[Any]]] = {}
        for uses in itertools.zip_longest(*rows):  # each row's first adapter, then each row's second, ...
            selection = self._selection(uses)
            for name in self.buffers.tensors:
                block, layer = _place(name)
                parts = updates.setdefault(block, {}).setdefault(layer, [])
                if self._whole and is_blocks_own(name):
                    parts.append(Update(EVERY_ROW, LoraLayer.kind, self.buffers.whole_matrices(name), *selection))
                else:
                    parts.extend(self._updates(name, uses, *selection))
        for name in self._vectors.names(rows):
            block, layer = _place(name)
            updates.setdefault(block, {}).setdefault(layer, []).extend(self._vectors.updates(name, rows))
        return updates

    def order(self, uses: tuple[SlotUse, ...]) -> tuple[object, ...]:
        """Return the key by which images are sorted, so that rows with adapters of one kind are computed together."""
        return tuple((self._kinds[slot], slot, scale) for slot, scale in uses)

    def conditioning(self, uses: tuple[SlotUse, ...]) -> ConditioningUpdates:
        """Return the updates of one image's adapters to the layers that depend on its times or its prompt alone."""
        return self.conditioner.updates([AdapterUse(*self._loaded[slot], scale) for slot, scale in uses])

    def _updates(
        self, name: str, uses: Sequence[SlotUse | None], slots_R: Tensor, scales_R11: Tensor
    ) -> Iterator[LinearUpdate]:
        """Yield the updates of a layer: one for each run of rows whose adapters are of one kind and shape there."""
        layouts = [None if use is None else self._layouts[use[0]].get(name) for use in uses]
        keys = [_computed_together(layout, use) for layout, use in zip(layouts, uses, strict=True)]
        for (layout, own), rows in _runs(keys):
            if layout is None:
                continue
            slots, scales = zip(*filter(None, uses[rows]), strict=True)
            is_one = len({*slots}) == 1
            matrices = self.buffers.matrices(name, layout.shapes, slot=slots[0] if is_one else None)
            if own and layout.rescales_input:
                gain = self._magnitudes[own[0]].at(own[1]).columns[name]
                yield InputUpdate(rows, (gain - 1).to(self._dtype))
                matrices = (matrices[0] * gain.to(self._dtype)[:, None], *matrices[1:])
            yield Update(
                rows,
                layout.kind,
                matrices,
                slots_R=None if is_one else slots_R[rows],
                scales_R11=None if {*scales} == {1.0} else scales_R11[rows],
            )
        for layout, rows in _runs(layouts):
            if layout is not None and layout.uses_dora:
                yield self._rescaling(name, uses[rows], rows)

    def _rescaling(self, name: str, uses: Sequence[SlotUse | None], rows: slice) -> Rescaling:
        found = [self._magnitudes[slot].at(scale).rows[name] for slot, scale in filter(None, uses)]
        if len({*uses}) == 1:
            gain, shift = (vector.expand(len(uses), 1, -1) for vector in found[0])
            return Rescaling(rows, gain, shift)
        gains, shifts = zip(*found, strict=True)
        return Rescaling(rows, torch.stack(gains)[:, None], torch.stack(shifts)[:, None])

    def _selection(self, uses: Sequence[SlotUse | None]) -> tuple[Tensor, Tensor]:
        """Return each row's slot, the empty one without an adapter, (R,), and its scale, (R, 1, 1)."""
        chosen = [use or (self.count, 1.0) for use in uses]
        slots_R = torch.tensor([slot for slot, _ in chosen])
        scales_R = torch.tensor([scale for _, scale in chosen], dtype=self._dtype)
        return slots_R.to(self._device), scales_R.to(self._device)[:, None, None]


def _computed_together(layout: Layout | None, use: SlotUse | None) -> tuple[Layout | None, SlotUse | None]:
    """Return a key, equal for rows that one product computes.

    Matrices that are made for a use are those of one: the pairs of a LoHa, whose size is many times that of its factors, and
    those of rescaled inputs. The rest of a DoRA is the product of a LoRA.
    """
    if layout is None:
        return None, None
    is_made = layout.kind == LohaLayer.kind or layout.rescales_input
    return layout._replace(uses_dora=False), use if is_made else None


def _runs(values: Sequence[_Value], first: int = 0) -> Iterator[tuple[_Value, slice]]:
    """Yield equal values that are next to one another, and their rows, numbered from ``first``."""
    for value, run in itertools.groupby(values):
        rows = slice(first, first + len(list(run)))
        first = rows.stop
        yield value, rows


def _place(name: str) -> tuple[str, str]:
    """Return the block of a module in a forward, and its name there."""
    if name in (IMAGE_EMBEDDER, OUTPUT):
        return BESIDE_BLOCKS, name
    stack, index, layer = name.split(".", 2)
    return f"{stack}.{index}", layer
