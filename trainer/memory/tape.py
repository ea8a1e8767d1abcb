"""The tensors that the operations of a training forward save for their backward pass, by sizes alone. No torch.

A tensor's size is rows (batch times tokens) times width times bytes an element. CUDA differs from a CPU in that the mask of
PEFT's dropout takes a byte, and a layer norm's mean and deviation are float32 (torch, ``Dropout.cpp``,
``layer_norm_kernel.cu``).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from longcat.model.shape import MLP_RATIO
from trainer.config.simpletuner.lycoris_layer import LayerOptions

_FLOAT32 = 4


@dataclass(frozen=True, kw_only=True)
class Walk:
    """The inputs that decide how much memory a forward keeps."""

    width: int
    """Width of a token inside the transformer: heads times head width."""
    heads: int
    double_blocks: int
    single_blocks: int
    batch: int
    image_tokens: int
    """Tokens of one picture."""
    text_tokens: int
    """Tokens of one prompt, padding included: pad rows are attended like others."""
    item_bytes: int
    """Bytes of an element in the compute type."""
    is_half: bool
    """True for float16: its residuals are clipped, and clipping keeps them."""
    is_cuda: bool
    rank: int
    dropout: float
    is_target: Callable[[str], bool]
    """Returns True if the adapter changes the layer of that name."""
    frozen_saves: Literal["nothing", "input", "weight"]
    """The tensor that a frozen linear layer saves, beside an offloaded weight."""
    uses_dora: bool = False
    lycoris_of: Callable[[str], LayerOptions] | None = None
    """Returns the options of a target's LoKr or LoHa; None for LoRA."""


@dataclass(eq=False)
class Value:
    """A tensor, compared by identity: one that two operations save is counted once."""

    rows: int
    width: int
    item_bytes: int
    grad: bool
    """True if the backward pass goes through it."""
    whole: "Value | None" = None
    """The tensor that it is a view of; None if it has memory of its own."""

    @property
    def size(self) -> int:
        """Bytes of the tensor's elements."""
        return self.rows * self.width * self.item_bytes


@dataclass
class Tape:
    """A record of one block's operations."""

    walk: Walk
    held: dict[int, Value] = field(default_factory=dict)
    others: int = 0
    """Bytes of tensors that only one operation can save."""
    read: set[str] = field(default_factory=set)
    """Names of layers whose weights the backward pass reads."""

    @property
    def total(self) -> int:
        """Bytes of all that has been kept."""
        return self.others + sum(value.size for value in self.held.values())

    def keep(self, value: Value) -> None:
        """Keep a tensor, or the one that it is a view of."""
        value = value.whole or value
        self.held[id(value)] = value

    def linear(self, name: str, x: Value, width: int) -> Value:
        """Count a linear layer and the adapter on it."""
        walk = self.walk
        if x.grad:
            self.read.add(name)
        if x.grad and walk.frozen_saves == "input":
            self.keep(x)
        if x.grad and walk.frozen_saves == "weight":
            self.others += x.width * width * walk.item_bytes
        is_target = walk.is_target(name)
        if is_target:
            self.adapter(name, x, width)
        return Value(x.rows, width, walk.item_bytes, x.grad or is_target)

    def adapter(self, name: str, x: Value, width: int) -> None:
        """Count the adapter of a layer."""
        if self.walk.lycoris_of is None:
            self._lora(x, width)
        else:
            self._lycoris(self.walk.lycoris_of(name), x, width)

    def _lycoris(self, options: LayerOptions, x: Value, width: int) -> None:
        """Count ``trainer.model.lycoris``: the input, the results between its products, and matrices in the compute type."""
        self.keep(x)
        shapes = options.shapes(x.width, width)
        if options.algo == "loha":
            pairs = options.dim**2
            self.others += pairs * (x.rows + x.width + width) * self.walk.item_bytes
            return
        groups = (shapes.get("lokr_w1") or shapes["lokr_w1_b"])[1]
        between = [(shapes.get("lokr_w2") or shapes["lokr_w2_a"])[0]]
        between += [shapes["lokr_w2_b"][0]] if "lokr_w2_b" in shapes else []
        self.others += x.rows * groups * sum(between) * self.walk.item_bytes

    def _lora(self, x: Value, width: int) -> None:
        """Count the low-rank layer of ``trainer.model.low_rank``: the input, the dropout mask, and the output of A."""
        walk = self.walk
        self.others += x.rows * walk.rank * walk.item_bytes
        if walk.uses_dora:
            self._dora(x, width)
            return
        self.keep(x)
        if walk.dropout:
            self.others += x.rows * x.width

    def _dora(self, x: Value, width: int) -> None:
        """Count ``trainer.model.magnitude`` after PEFT's dropout: the mask, its result, the base's without the bias.

        A and the scaled B are copies in the compute type. With dropout, the base layer computes a second time.
        """
        walk = self.walk
        if walk.dropout and x.grad:
            self.others += x.rows * x.width * (1 if walk.is_cuda else walk.item_bytes)
        if walk.dropout or (x.whole and walk.batch > 1):  # views of several rows are copied to be contiguous
            self.others += x.rows * x.width * walk.item_bytes
        else:
            self.keep(x)
        self.others += (x.rows + walk.rank) * width * walk.item_bytes
        if walk.item_bytes < _FLOAT32:
            self.others += x.width * walk.rank * walk.item_bytes
        if walk.dropout and x.grad and walk.frozen_saves == "weight":
            self.others += width * x.width * walk.item_bytes

    def layer_norm(self, x: Value) -> Value:
        """Count input, mean and deviation."""
        if x.grad:
            self.keep(x)
            self.others += 2 * x.rows * (_FLOAT32 if self.walk.is_cuda else self.walk.item_bytes)
        return Value(x.rows, x.width, x.item_bytes, x.grad)

    def head_norm(self, x: Value) -> Value:
        """Count norm and rotation of each head: the input, and one root a head."""
        if x.grad:
            self.keep(x)
            self.others += x.rows * self.walk.heads * _FLOAT32
        return Value(x.rows, x.width, x.item_bytes, x.grad)

    def scale(self, x: Value) -> Value:
        """Count what ``x * (1 + scale) + shift`` saves."""
        if x.grad:
            self.others += self.walk.batch * x.width * self.walk.item_bytes
        return Value(x.rows, x.width, x.item_bytes, x.grad)

    def gated(self, x: Value, modulation: Value, residual: Value) -> Value:
        """Count what ``residual + gate * x`` saves: the gate is a view of the modulation, all of which stays."""
        if x.grad:
            self.keep(modulation)
        return Value(x.rows, x.width, x.item_bytes, x.grad or residual.grad)

    def attention(self, query: Value, key: Value, value: Value) -> Value:
        """Count scaled dot-product attention: operands, result, and one logarithm per row and head."""
        walk = self.walk
        grad = query.grad or key.grad or value.grad
        out = Value(query.rows, query.width, walk.item_bytes, grad)
        if grad:
            for operand in (query, key, value, out):
                self.keep(operand)
            self.others += query.rows * walk.heads * _FLOAT32
        return out

    def feed_forward(self, name: str, x: Value) -> Value:
        """Count both linear layers and the activation between them."""
        inner = self.linear(f"{name}.net.0.proj", x, MLP_RATIO * x.width)
        return self.linear(f"{name}.net.2", self.gelu(inner), x.width)

    def gelu(self, x: Value) -> Value:
        """Count the input."""
        if x.grad:
            self.keep(x)
        return Value(x.rows, x.width, x.item_bytes, x.grad)

    def clipped(self, x: Value) -> Value:
        """Count the clipping of float16."""
        if not self.walk.is_half:
            return x
        if x.grad:
            self.keep(x)
        return Value(x.rows, x.width, x.item_bytes, x.grad)
