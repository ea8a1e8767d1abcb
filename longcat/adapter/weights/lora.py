"""The layers of an adapter in memory: LoRA, with DoRA's magnitudes, beside LoKr and LoHa."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from longcat.adapter.weights.lycoris import LycorisLayer

MAGNITUDE = "lora_magnitude_vector"
"""End of the key of a layer's magnitudes, as PEFT and diffusers name it."""


@dataclass(frozen=True)
class LoraLayer:
    """The update of one module: ``up @ down`` times alpha / rank."""

    down: Tensor
    """A, (rank, in)."""
    up: Tensor
    """B, (out, rank)."""
    magnitude: Tensor | None = None
    """With DoRA, (out,): the norms of the adapted weight's rows (``longcat.adapter.weights.dora``)."""

    kind: ClassVar[str] = "lora"

    @property
    def rank(self) -> int:
        """Rank of the update: rows of A."""
        return self.down.shape[0]

    @property
    def dim(self) -> int:
        """The r of alpha / r."""
        return self.rank

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by the ends of their keys."""
        magnitude = {} if self.magnitude is None else {MAGNITUDE: self.magnitude}
        return {"lora_A.weight": self.down, "lora_B.weight": self.up, **magnitude}

    def delta(self) -> Tensor:
        """Return the update without its scale, (out, in) in float32."""
        return self.up.float() @ self.down.float()


Layer = LoraLayer | LycorisLayer


@dataclass(frozen=True, kw_only=True)
class LoraWeights:
    """The weights of an adapter: alpha, and a layer for each module that it changes."""

    alpha: float
    """The alpha of the LoRA layers; those of LoKr and LoHa have a scale of their own."""
    layers: Mapping[str, Layer]
    vectors: Mapping[str, Tensor] = field(default_factory=dict)
    """Changes of vectors by their module: of a linear layer's bias (out,), or of the weight of a heads' norm (width,)."""
    column_magnitudes: Mapping[tuple[str, ...], Tensor] = field(default_factory=dict)
    """With DoRA over the input axis, (in,) by the modules whose rows the norms of a column are of."""

    @property
    def kind(self) -> str:
        """lora, lokr or loha; several are joined by "+"."""
        return "+".join(sorted({layer.kind for layer in self.layers.values()}))

    @property
    def rank(self) -> int:
        """Rank of the slot that the adapter needs: the largest of its layers."""
        return max(layer.rank for layer in self.layers.values())

    @property
    def uses_dora(self) -> bool:
        """True if layers have magnitudes."""
        return bool(self.column_magnitudes) or any(layer.magnitude is not None for layer in self.layers.values())


def served(layer: Layer, alpha: float) -> tuple[Tensor, ...]:
    """Return the matrices that a slot holds, the last one scaled. A LoRA's are A^T (in, r) and B^T (r, out).

    ``alpha``: of the adapter's LoRA layers.
    """
    if not isinstance(layer, LoraLayer):
        return layer.served()
    scale = alpha / layer.rank
    return layer.down.T, layer.up.T if scale == 1 else layer.up.T.float() * scale
