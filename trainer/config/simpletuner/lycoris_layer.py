"""One layer's LoKr or LoHa: its options, and the sizes of its matrices. No torch.

The matrices have the sizes that ``lycoris.modules`` gives them.
"""

import math
from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict

from longcat.errors import ConfigError

Shape = tuple[int, int]


class LayerOptions(BaseModel):
    """The options of one layer."""

    model_config = ConfigDict(frozen=True)

    algo: Literal["lokr", "loha"]
    dim: int
    alpha: float
    factor: int
    full_matrix: bool
    decompose_both: bool
    unbalanced_factorization: bool

    def shapes(self, width_in: int, width_out: int) -> dict[str, Shape]:
        """Return the shapes of the matrices, by the ends of their keys, of a layer with these widths.

        Raises ``ConfigError`` for a LoHa of a higher rank than the layer: it adds nothing, but takes more memory.
        """
        if self.algo == "loha":
            if self.dim > (most := max(width_in, width_out)):
                raise ConfigError(
                    "lycoris_dim_too_large",
                    "more than the width of a layer, {most}",
                    remedy="give at most {most}; 4 to 32 are usual, and only LoKr takes a large one for whole matrices",
                    field="lycoris_config.linear_dim",
                    value=self.dim,
                    most=most,
                )
            one = {"a": (width_out, self.dim), "b": (self.dim, width_in)}
            return {f"hada_w{i}_{part}": shape for i in (1, 2) for part, shape in one.items()}
        (b, d), (a, c) = factorization(width_in, self.factor), factorization(width_out, self.factor)
        if self.unbalanced_factorization:
            a, c = c, a
        is_product = self.decompose_both and not self.full_matrix and self.dim < max(a, b) / 2
        return {
            **self._factor("lokr_w1", a, b, is_product=is_product),
            **self._factor("lokr_w2", c, d, is_product=not self.full_matrix and self.dim < max(c, d) / 2),
        }

    def _factor(self, name: str, rows: int, columns: int, *, is_product: bool) -> dict[str, Shape]:
        if is_product:
            return {f"{name}_a": (rows, self.dim), f"{name}_b": (self.dim, columns)}
        return {name: (rows, columns)}

    def slot_rank(self, width_in: int, width_out: int) -> int:
        """Return the rank of the slot that the layer needs, as ``longcat.adapter.weights.lycoris`` counts it."""
        shapes = self.shapes(width_in, width_out)
        numbers = sum(rows * columns for rows, columns in shapes.values())
        if self.algo == "lokr":
            w1, w2 = (_whole(shapes, f"lokr_{factor}") for factor in ("w1", "w2"))
            chain = sum(math.prod(shape) for name, shape in shapes.items() if name.startswith("lokr_w2"))
            numbers = math.prod(w1) + min(chain, math.prod(w2))
        return math.ceil(numbers / (width_in + width_out))


def factorization(width: int, factor: int) -> Shape:
    """Return two sizes with this product, the smaller first: ``factor``, or the largest divisor that is no larger.

    -1 gives the most equal sizes (LyCORIS ``functional/general.py``).
    """
    if factor > 0 and width % factor == 0:
        return min(factor, width // factor), max(factor, width // factor)
    most = math.isqrt(width) if factor < 0 else min(max(factor, 1), math.isqrt(width))
    small = next(size for size in range(most, 0, -1) if width % size == 0)
    return small, width // small


def _whole(shapes: Mapping[str, Shape], name: str) -> Shape:
    return shapes[name] if name in shapes else (shapes[f"{name}_a"][0], shapes[f"{name}_b"][1])
