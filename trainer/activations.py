"""What autograd holds on to: a training forward of the transformer walked on sizes instead of numbers. No torch.

The walk follows diffusers' ``transformer_longcat_image.py`` as ``trainer.forward`` and ``trainer.low_rank`` compute it, and
PEFT's layer with DoRA. It keeps what each operation saves for its backward pass, each tensor once. That depends on what has
to be differentiated (the base is frozen, so that a linear layer saves nothing of its own), and on how weights are stored:

- optimum-quanto saves the input of every linear layer, wanted or not;
- torchao saves the weight that it has dequantized: without checkpointing, the whole base again, at full precision;
- so does a base that is offloaded: what visits the device stays there until the backward pass.

A tensor's size is rows (batch times tokens) times width times bytes an element. CUDA differs from a CPU in that autocast
normalizes in float32 there, and the mask of PEFT's dropout takes a byte instead of four (torch, ``autocast_mode.h``,
``Dropout.cpp``).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

MLP_RATIO = 4
_FLOAT32 = 4
_OUTPUTS = ("to_out.0", "to_add_out")


@dataclass(frozen=True, kw_only=True)
class Walk:
    """What decides how much a forward leaves behind."""

    width: int
    """Of a token inside the transformer: heads times head width."""
    heads: int
    double_blocks: int
    single_blocks: int
    batch: int
    image_tokens: int
    """Of one picture."""
    text_tokens: int
    """Of one prompt, padding included: pad rows are attended like others."""
    item_bytes: int
    """Of an element in the compute type."""
    is_half: bool
    """float16: its residuals are clipped, for which they are kept."""
    is_cuda: bool
    rank: int
    dropout: float
    is_target: Callable[[str], bool]
    """Whether the adapter changes the layer of that name."""
    frozen_saves: Literal["nothing", "input", "weight"]
    """What a frozen linear layer leaves behind."""
    uses_dora: bool = False

    @property
    def autocasts(self) -> bool:
        """Whether the float32 adapter computes in a smaller type."""
        return self.item_bytes < _FLOAT32


@dataclass(frozen=True, kw_only=True)
class Saved:
    """Bytes that a forward leaves behind for its backward pass."""

    blocks: tuple[int, ...]
    """Of each block, double ones first."""
    inputs: int
    """Of the input of one block: all that is kept of a block whose activations are computed again."""
    rest: int
    """Outside of blocks: rotations, the last normalization, the loss."""

    def peak(self, every: int) -> int:
        """Most bytes at once while every n-th block (0: none) is computed again in the backward pass."""
        kept, most = 0, 0
        for place, whole in enumerate(self.blocks):
            again = every > 0 and place % every == 0
            most = max(most, kept + whole + (self.inputs if again else 0))
            kept += self.inputs if again else whole
        return self.rest + most


@dataclass(eq=False)
class _Value:
    """A tensor, known by its identity: what two operations save is there once."""

    rows: int
    width: int
    item_bytes: int
    grad: bool
    """Whether the backward pass comes through it."""
    whole: "_Value | None" = None
    """What it is a part of, if it has no memory of its own."""

    @property
    def size(self) -> int:
        return self.rows * self.width * self.item_bytes


@dataclass
class _Tape:
    walk: Walk
    held: dict[int, _Value] = field(default_factory=dict)
    others: int = 0
    """Bytes of what no second operation can save too."""

    @property
    def total(self) -> int:
        return self.others + sum(value.size for value in self.held.values())

    def keep(self, value: _Value) -> None:
        value = value.whole or value
        self.held[id(value)] = value

    def linear(self, name: str, x: _Value, width: int) -> _Value:
        walk = self.walk
        if x.grad and walk.frozen_saves == "input":
            self.keep(x)
        if x.grad and walk.frozen_saves == "weight":
            self.others += x.width * width * walk.item_bytes
        is_target = walk.is_target(name)
        if is_target:
            self._lora(x, width)
        return _Value(x.rows, width, walk.item_bytes, x.grad or is_target)

    def _lora(self, x: _Value, width: int) -> None:
        """``trainer.low_rank``: the input, the mask, and what A makes of it."""
        walk = self.walk
        self.others += x.rows * walk.rank * walk.item_bytes
        if walk.uses_dora:
            self._dora(x, width)
            return
        self.keep(x)
        if walk.dropout:
            self.others += x.rows * x.width

    def _dora(self, x: _Value, width: int) -> None:
        """PEFT: B(A(dropout(x in float32))), A and B in float32 or, under autocast, in copies that autocast keeps.

        Then ``trainer.lora.Magnitude``: what its gains multiply, and with dropout the layer once more.
        """
        walk = self.walk
        if walk.dropout and x.grad:
            self.others += x.rows * x.width * (1 if walk.is_cuda else _FLOAT32)
        if walk.autocasts:
            self.others += x.rows * x.width * walk.item_bytes + walk.rank * (x.width + width) * walk.item_bytes
        elif walk.dropout or (x.whole and walk.batch > 1):  # several parts are copied to lie together
            self.others += x.size
        else:
            self.keep(x)
        self.others += 2 * x.rows * width * walk.item_bytes
        if walk.dropout and x.grad and walk.frozen_saves != "nothing":
            rows = x.rows if walk.frozen_saves == "input" else width
            self.others += rows * x.width * walk.item_bytes

    def layer_norm(self, x: _Value) -> _Value:
        """Input, mean and deviation; in float32 under CUDA's autocast."""
        walk = self.walk
        item = _FLOAT32 if walk.is_cuda else walk.item_bytes
        if x.grad:
            if item == x.item_bytes:
                self.keep(x)
            else:
                self.others += x.rows * x.width * item
            self.others += 2 * x.rows * item
        return _Value(x.rows, x.width, item, x.grad)

    def head_norm(self, x: _Value) -> _Value:
        """Norm and rotation of each head: its input, and a root a head."""
        if x.grad:
            self.keep(x)
            self.others += x.rows * self.walk.heads * _FLOAT32
        return _Value(x.rows, x.width, x.item_bytes, x.grad)

    def scale(self, x: _Value) -> _Value:
        """What is left of ``x * (1 + scale) + shift``."""
        if x.grad:
            self.others += self.walk.batch * x.width * self.walk.item_bytes
        return _Value(x.rows, x.width, x.item_bytes, x.grad)

    def gated(self, x: _Value, modulation: _Value, residual: _Value) -> _Value:
        """What is left of ``residual + gate * x``; the gate is a part of the modulation, all of which stays."""
        if x.grad:
            self.keep(modulation)
        return _Value(x.rows, x.width, x.item_bytes, x.grad or residual.grad)

    def attention(self, query: _Value, key: _Value, value: _Value) -> _Value:
        """Scaled dot products that save their operands, their result and a logarithm a row and head."""
        walk = self.walk
        grad = query.grad or key.grad or value.grad
        out = _Value(query.rows, query.width, walk.item_bytes, grad)
        if grad:
            for operand in (query, key, value, out):
                self.keep(operand)
            self.others += query.rows * walk.heads * _FLOAT32
        return out

    def feed_forward(self, name: str, x: _Value) -> _Value:
        inner = self.linear(f"{name}.net.0.proj", x, MLP_RATIO * x.width)
        return self.linear(f"{name}.net.2", self.gelu(inner), x.width)

    def gelu(self, x: _Value) -> _Value:
        if x.grad:
            self.keep(x)
        return _Value(x.rows, x.width, x.item_bytes, x.grad)

    def clipped(self, x: _Value) -> _Value:
        if not self.walk.is_half:
            return x
        if x.grad:
            self.keep(x)
        return _Value(x.rows, x.width, x.item_bytes, x.grad)


def saved(walk: Walk) -> Saved:
    """Walk one forward."""
    rows = walk.batch * walk.image_tokens, walk.batch * walk.text_tokens
    image, text = (_Value(count, walk.width, walk.item_bytes, False) for count in rows)
    blocks = []
    for index in range(walk.double_blocks):
        tape = _Tape(walk)
        image, text = _double(tape, f"transformer_blocks.{index}", image, text)
        blocks.append(tape.total)
    both = _Value(sum(rows), walk.width, walk.item_bytes, image.grad or text.grad)
    for index in range(walk.single_blocks):
        tape = _Tape(walk)
        asking = image if index == walk.single_blocks - 1 else both
        both = _single(tape, f"single_transformer_blocks.{index}", both, asking.rows)
        blocks.append(tape.total)
    tape = _Tape(walk)
    last = tape.layer_norm(both)
    tape.scale(last)
    prediction = 2 * rows[0] * 64 * _FLOAT32
    head_width = walk.width // walk.heads
    rotations = 2 * (walk.image_tokens + walk.text_tokens) * head_width * walk.item_bytes
    return Saved(blocks=tuple(blocks), inputs=both.size, rest=tape.total + prediction + rotations)


def _double(tape: _Tape, name: str, image: _Value, text: _Value) -> tuple[_Value, _Value]:
    """LongCatImageTransformerBlock."""
    walk = tape.walk
    of_image, of_text = (_Value(walk.batch, 6 * walk.width, walk.item_bytes, False) for _ in range(2))
    x, y = tape.scale(tape.layer_norm(image)), tape.scale(tape.layer_norm(text))
    query, key, value = (tape.linear(f"{name}.attn.to_{part}", x, walk.width) for part in "qkv")
    more = [tape.linear(f"{name}.attn.add_{part}_proj", y, walk.width) for part in "qkv"]
    query, key = tape.head_norm(query), tape.head_norm(key)
    joint = (_cat(query, tape.head_norm(more[0])), _cat(key, tape.head_norm(more[1])), _cat(value, more[2]))
    out = tape.attention(*joint)
    parts = (_Value(part.rows, out.width, out.item_bytes, out.grad, whole=out) for part in (image, text))
    x, y = (tape.linear(f"{name}.attn.{layer}", part, walk.width) for layer, part in zip(_OUTPUTS, parts, strict=True))
    image, text = tape.gated(x, of_image, image), tape.gated(y, of_text, text)
    x = tape.feed_forward(f"{name}.ff", tape.scale(tape.layer_norm(image)))
    y = tape.feed_forward(f"{name}.ff_context", tape.scale(tape.layer_norm(text)))
    return tape.gated(x, of_image, image), tape.clipped(tape.gated(y, of_text, text))


def _single(tape: _Tape, name: str, both: _Value, asking: int) -> _Value:
    """LongCatImageSingleTransformerBlock, of which ``asking`` rows are read: all, but for the last one."""
    walk = tape.walk
    modulation = _Value(walk.batch, 3 * walk.width, walk.item_bytes, False)
    x = tape.scale(tape.layer_norm(both))
    read = x if asking == x.rows else _Value(asking, x.width, x.item_bytes, x.grad, whole=x)
    mlp = tape.gelu(tape.linear(f"{name}.proj_mlp", read, MLP_RATIO * walk.width))
    query, key, value = (
        tape.linear(f"{name}.attn.to_{part}", read if part == "q" else x, walk.width) for part in "qkv"
    )
    out = tape.attention(tape.head_norm(query), tape.head_norm(key), value)
    joined = _Value(asking, out.width + mlp.width, max(out.item_bytes, mlp.item_bytes), out.grad or mlp.grad)
    projected = tape.linear(f"{name}.proj_out", joined, walk.width)
    return tape.clipped(tape.gated(projected, modulation, both))


def _cat(image: _Value, text: _Value) -> _Value:
    return _Value(image.rows + text.rows, image.width, image.item_bytes, image.grad or text.grad)
