"""LoKr and LoHa: updates that are a Kronecker or an elementwise product of small matrices (LyCORIS, arXiv 2309.14859).

An update D (out, in) is added to a layer's weight, at scale s:

- LoKr: D = s * kron(W1, W2) with W1 (a, b) and W2 (c, d), out = a c, in = b d. Each is a matrix, or a product of two.
- LoHa: D = s * (A1 B1) * (A2 B2), elementwise, with A (out, r) and B (r, in).

Neither is ever computed as a matrix of D's size. kron(W1, W2) x is W1 X W2^T for the b groups of d numbers of x, X (b, d).
The elementwise product of two updates of rank r is one of rank r^2: its rows are the products of every pair of rows
(``pairs``). As in ``lycoris-lora`` (``modules/lokr.py``, ``modules/loha.py``), s is alpha / r, and 1 if W1 and W2 are both
whole matrices.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from longcat.adapter.weights.checks import check_floating_point
from longcat.errors import AdapterError

Factor = tuple[Tensor] | tuple[Tensor, Tensor]
"""A matrix, or two whose product it is."""


@dataclass(frozen=True)
class LokrLayer:
    """The LoKr of one module."""

    w1: Factor
    """W1, (a, b), or (a, r) and (r, b)."""
    w2: Factor
    """W2, (c, d), or (c, r) and (r, d)."""
    scale: float = 1.0

    kind: ClassVar[str] = "lokr"
    magnitude: ClassVar[None] = None

    @property
    def dim(self) -> int:
        """The r of alpha / r; 1 if there is none."""
        low_rank = next((factor for factor in (self.w2, self.w1) if len(factor) == 2), None)
        return 1 if low_rank is None else low_rank[0].shape[1]

    @property
    def is_whole(self) -> bool:
        """True if W1 and W2 are whole matrices, whose scale is 1 whatever alpha is."""
        return len(self.w1) == len(self.w2) == 1

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the update: out, in."""
        (a, b), (c, d) = _shape(self.w1), _shape(self.w2)
        return a * c, b * d

    @property
    def rank(self) -> int:
        """Rank of the LoRA that takes as much memory in a slot."""
        return _slot_rank(self.served(), self.shape)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by the ends of their keys."""
        return {
            **_named("lokr_w1", self.w1),
            **_named("lokr_w2", self.w2),
            "alpha": torch.tensor(self.scale * self.dim),
        }

    def served(self) -> tuple[Tensor, ...]:
        """Return the matrices of a slot: W2^T (d, c), or (d, r) and (r, c) if they are smaller; then W1, scaled."""
        (c, d), w2 = _shape(self.w2), self.w2
        chain = w2 if len(w2) == 2 and w2[0].numel() + w2[1].numel() < c * d else (_product(w2),)
        return (*(matrix.T for matrix in reversed(chain)), _times(_product(self.w1), self.scale))

    def delta(self) -> Tensor:
        """Return the update, (out, in) in float32."""
        return torch.kron(_product(self.w1).float(), _product(self.w2).float()) * self.scale

    def rows(self, first: int, count: int) -> Self | None:
        """Return the update of some output rows; None if that is no Kronecker product."""
        c = _shape(self.w2)[0]
        if first % c or count % c:
            return None
        top = self.w1[0][first // c : (first + count) // c]
        return replace(self, w1=_copied((top, *self.w1[1:])), w2=_copied(self.w2))


@dataclass(frozen=True)
class LohaLayer:
    """The LoHa of one module."""

    w1_a: Tensor
    """A1, (out, r)."""
    w1_b: Tensor
    """B1, (r, in)."""
    w2_a: Tensor
    w2_b: Tensor
    scale: float = 1.0

    kind: ClassVar[str] = "loha"
    is_whole: ClassVar[bool] = False
    magnitude: ClassVar[None] = None

    @property
    def dim(self) -> int:
        """The r of alpha / r."""
        return self.w1_b.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the update: out, in."""
        return self.w1_a.shape[0], self.w1_b.shape[1]

    @property
    def rank(self) -> int:
        """Rank of the LoRA that takes as much memory in a slot."""
        return _slot_rank(self.served(), self.shape)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by the ends of their keys."""
        matrices = {"hada_w1_a": self.w1_a, "hada_w1_b": self.w1_b, "hada_w2_a": self.w2_a, "hada_w2_b": self.w2_b}
        return {**matrices, "alpha": torch.tensor(self.scale * self.dim)}

    def served(self) -> tuple[Tensor, ...]:
        """Return the matrices of a slot: B1^T and B2^T (in, r), A1^T and A2^T (r, out), the last one scaled."""
        return self.w1_b.T, self.w2_b.T, self.w1_a.T, _times(self.w2_a.T, self.scale)

    def as_lora(self) -> tuple[Tensor, Tensor]:
        """Return the matrices of a LoRA of rank r^2 that is the same update: (in, r^2), and (r^2, out), scaled."""
        b1, b2, a1, a2 = (matrix.float() for matrix in self.served())
        return pairs(b1, b2, -1), pairs(a1, a2, -2)

    def peaks(self) -> tuple[Tensor, Tensor]:
        """Return the largest of the products of ``pairs`` in each column of B and row of A: (in,) and (out,)."""
        b1, b2, a1, a2 = (matrix.float().abs() for matrix in self.served())
        return b1.amax(1) * b2.amax(1), a1.amax(0) * a2.amax(0)

    def delta(self) -> Tensor:
        """Return the update, (out, in) in float32."""
        first, second = _product((self.w1_a, self.w1_b)), _product((self.w2_a, self.w2_b))
        return first.float() * second.float() * self.scale

    def rows(self, first: int, count: int) -> Self:
        """Return the update of some output rows."""
        part = slice(first, first + count)
        return replace(
            self,
            w1_a=self.w1_a[part].clone(),
            w2_a=self.w2_a[part].clone(),
            w1_b=self.w1_b.clone(),
            w2_b=self.w2_b.clone(),
        )


LycorisLayer = LokrLayer | LohaLayer
LYCORIS_KEYS = frozenset(
    {f"lokr_{factor}{part}" for factor in ("w1", "w2") for part in ("", "_a", "_b")}
    | {f"hada_{factor}{part}" for factor in ("w1", "w2") for part in ("_a", "_b")}
)
"""Ends of the keys of a layer's matrices."""


def pairs(first: Tensor, second: Tensor, dim: int) -> Tensor:
    """Return the products of every row (or column) of one matrix with every one of another, along ``dim``.

    (..., r, n) and (..., r, n) give (..., r^2, n) with ``dim`` -2. For ``A`` and ``B`` of a LoHa, ``pairs(A1, A2, -1) @
    pairs(B1, B2, -2)`` is its update.
    """
    return (first.unsqueeze(dim) * second.unsqueeze(dim - 1)).flatten(dim - 1, dim)


def lycoris_layer(module: str, tensors: Mapping[str, Tensor]) -> LycorisLayer:
    """Return the layer that tensors are, by the ends of their keys, at scale 1. Raises ``AdapterError`` for parts of one."""
    names = tensors.keys() - {"alpha"}
    if names == {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}:
        layer: LycorisLayer = LohaLayer(
            tensors["hada_w1_a"], tensors["hada_w1_b"], tensors["hada_w2_a"], tensors["hada_w2_b"]
        )
    elif (
        (w1 := _factor("lokr_w1", tensors)) and (w2 := _factor("lokr_w2", tensors)) and len(names) == len(w1) + len(w2)
    ):
        layer = LokrLayer(w1, w2)
    else:
        raise AdapterError(
            "adapter_factors_incomplete",
            "{module!r} has {present}, which is neither a whole LoKr nor a whole LoHa",
            remedy="save the adapter again",
            module=module,
            present=", ".join(sorted(names)),
        )
    _check_matrices(module, layer)
    return layer


def scaled_by(layer: LycorisLayer, alpha: float) -> LycorisLayer:
    """Return a layer with the scale that follows from its alpha: 1 for a LoKr of two whole matrices."""
    return replace(layer, scale=1.0 if layer.is_whole else alpha / layer.dim)


def _check_matrices(module: str, layer: LycorisLayer) -> None:
    """Check that all are matrices of floating-point numbers, and that products of two exist."""
    matrices = {name: tensor for name, tensor in layer.tensors().items() if name != "alpha"} if _is_sound(layer) else {}
    if not matrices:
        raise AdapterError(
            "adapter_factors_shape",
            "{module!r} has the shapes {shapes}, which have no product",
            remedy="save the adapter again; LoKr and LoHa on convolutions do not fit this model",
            module=module,
            shapes=", ".join(str(tuple(tensor.shape)) for tensor in _parts(layer)),
        )
    for name, tensor in matrices.items():
        check_floating_point(module, name, tensor)


def _is_sound(layer: LycorisLayer) -> bool:
    """Return True if all are matrices with numbers, and the inner sizes of products agree."""
    if any(tensor.ndim != 2 or not tensor.numel() for tensor in _parts(layer)):
        return False
    if isinstance(layer, LohaLayer):
        first, second = layer.w1_a.shape[1], layer.w2_a.shape[1]
        return (
            first == second == layer.w1_b.shape[0] == layer.w2_b.shape[0]
            and layer.w1_a.shape == layer.w2_a.shape
            and layer.w1_b.shape == layer.w2_b.shape
        )
    products = [factor for factor in (layer.w1, layer.w2) if len(factor) == 2]
    inner = {size for a, b in products for size in (a.shape[1], b.shape[0])}
    return len(inner) <= 1


def _parts(layer: LycorisLayer) -> tuple[Tensor, ...]:
    return (*layer.w1, *layer.w2) if isinstance(layer, LokrLayer) else (layer.w1_a, layer.w1_b, layer.w2_a, layer.w2_b)


def _factor(name: str, tensors: Mapping[str, Tensor]) -> Factor | tuple[()]:
    if name in tensors:
        return (tensors[name],)
    if f"{name}_a" in tensors and f"{name}_b" in tensors:
        return tensors[f"{name}_a"], tensors[f"{name}_b"]
    return ()


def _copied(factor: Sequence[Tensor]) -> Factor:
    """Copy a factor: parts of a fused layer share memory, which safetensors does not write."""
    first, *second = (matrix.clone() for matrix in factor)
    return (first, second[0]) if second else (first,)


def _named(name: str, factor: Factor) -> dict[str, Tensor]:
    return {name: factor[0]} if len(factor) == 1 else {f"{name}_a": factor[0], f"{name}_b": factor[1]}


def _shape(factor: Factor) -> tuple[int, int]:
    return factor[0].shape[0], factor[-1].shape[1]


def _product(factor: Factor) -> Tensor:
    """Return the matrix that a factor is; of two, their product in float32."""
    return factor[0] if len(factor) == 1 else factor[0].float() @ factor[1].float()


def _times(matrix: Tensor, scale: float) -> Tensor:
    return matrix if scale == 1 else matrix.float() * scale


def _slot_rank(matrices: tuple[Tensor, ...], shape: tuple[int, int]) -> int:
    return math.ceil(sum(matrix.numel() for matrix in matrices) / sum(shape))
