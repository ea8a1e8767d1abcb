"""The updates of adapters to the layers of a forward, each in rows that are next to one another.

``longcat.sampling.slots`` makes them, and ``longcat.sampling.blocks`` applies them in their order.

Shapes: R rows, S slots, r rank.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

EVERY_ROW = slice(None)
"""The rows of an update that is of all of them, whose code, compiled, is the same for any number of rows."""


class Update(NamedTuple):
    """The changes of a linear layer's output by adapters, in rows of the forward that are next to one another.

    All are of one kind and shape, so that one product computes them. The matrices of rows are selected while the layer
    computes: those of one layer at a time are copied.
    """

    rows: slice
    kind: str
    """lora, lokr or loha."""
    matrices: tuple[Tensor, ...]
    """Views of the layer's matrices in all slots, each (S, ., .), as ``longcat.adapter.weights.lora.served`` has them: a
    LoRA's (S, in, r) and (S, r, out). Without ``slots_R``, S is 1."""
    slots_R: Tensor | None = None
    """Each row's slot; None if all rows use the one adapter of ``matrices``."""
    scales_R11: Tensor | None = None
    """The factor of each row's last matrix, its image's scale, in the dtype of the slots; None if all are 1."""

    def within(self, first: int, end: int) -> "Update | None":
        """Return the update of rows ``first`` to ``end``, numbered from ``first``; None if it changes none of them."""
        rows, inside = _overlap(self.rows, first, end)
        if rows is None:
            return None
        slots_R, scales_R11 = (None if of_rows is None else of_rows[inside] for of_rows in self[3:])
        return self._replace(rows=rows, slots_R=slots_R, scales_R11=scales_R11)


class Rescaling(NamedTuple):
    """The rescaling of a linear layer's output by DoRA, after its update, in some rows of the forward."""

    rows: slice
    gain: Tensor
    """(rows, 1, out) in float32."""
    shift: Tensor
    """(rows, 1, out) in float32: what undoes the rescaling of the bias."""

    def within(self, first: int, end: int) -> "Rescaling | None":
        """Return the rescaling of rows ``first`` to ``end``, numbered from ``first``; None if it changes none of them."""
        rows, inside = _overlap(self.rows, first, end)
        return None if rows is None else Rescaling(rows, self.gain[inside], self.shift[inside])


class BiasUpdate(NamedTuple):
    """The change of a linear layer's bias in some rows of the forward."""

    rows: slice
    bias: Tensor
    """(rows, 1, out)."""

    def within(self, first: int, end: int) -> "BiasUpdate | None":
        """Return the update of rows ``first`` to ``end``, numbered from ``first``; None if it changes none of them."""
        rows, inside = _overlap(self.rows, first, end)
        return None if rows is None else BiasUpdate(rows, self.bias[inside])


class InputUpdate(NamedTuple):
    """The change of the input of a linear layer's base weight by one adapter: DoRA over the input axis."""

    rows: slice
    change: Tensor
    """Gains less 1, (in,)."""

    def within(self, first: int, end: int) -> "InputUpdate | None":
        """Return the update of rows ``first`` to ``end``, numbered from ``first``; None if it changes none of them."""
        rows, _ = _overlap(self.rows, first, end)
        return None if rows is None else self._replace(rows=rows)


class NormUpdate(NamedTuple):
    """The weights of a norm of heads in some rows of the forward."""

    rows: slice
    weight: Tensor
    """(rows, 1, 1, head width)."""

    def within(self, first: int, end: int) -> "NormUpdate | None":
        """Return the update of rows ``first`` to ``end``, numbered from ``first``; None if it changes none of them."""
        rows, inside = _overlap(self.rows, first, end)
        return None if rows is None else NormUpdate(rows, self.weight[inside])


def _overlap(rows: slice, first: int, end: int) -> tuple[slice | None, slice]:
    """Return the rows inside of ``first`` to ``end``, numbered from ``first``, and numbered from the first of ``rows``."""
    if rows == EVERY_ROW:
        return EVERY_ROW, slice(first, end)
    begin, stop = max(rows.start, first), min(rows.stop, end)
    if begin >= stop:
        return None, slice(0, 0)
    return slice(begin - first, stop - first), slice(begin - rows.start, stop - rows.start)


BlockUpdates = Mapping[str, Sequence[Any]]
"""By the name within its block, each ``LinearUpdate`` of a linear layer and each ``NormUpdate`` of a norm."""
LinearUpdate = Update | Rescaling | InputUpdate | BiasUpdate
Updates = Mapping[str, BlockUpdates]
"""Updates by the block's name; a block without an entry is unchanged."""
BESIDE_BLOCKS = ""
"""The name of the block of the layers that belong to none: the embedder of image tokens and the output layer."""
