"""The activations that autograd keeps: a training forward of the transformer, walked on sizes alone. No torch.

The walk follows diffusers' ``transformer_longcat_image.py`` as ``trainer.model.forward`` and
``trainer.model.low_rank`` compute it, and PEFT's layer with DoRA. It records the tensors that each operation saves for its
backward pass, each tensor once. They depend on what is differentiated (the base is frozen, so a linear layer saves nothing
by itself), and on how weights are stored:

- optimum-quanto saves the input of every linear layer, needed or not;
- torchao saves the dequantized weight: without checkpointing, the whole base again, at full precision;
- of an offloaded base, other layers save the weight that was brought to the device (``trainer.memory.offloading``).

A tensor's size is rows (batch times tokens) times width times bytes an element. CUDA differs from a CPU in that the mask of
PEFT's dropout takes a byte, and a layer norm's mean and deviation are float32 (torch, ``Dropout.cpp``,
``layer_norm_kernel.cu``).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from longcat.model.shape import MLP_RATIO, TOKEN_CHANNELS
from trainer.config.simpletuner.lycoris import LayerOptions

_FLOAT32 = 4
_OUTPUTS = ("to_out.0", "to_add_out")


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


@dataclass(frozen=True, kw_only=True)
class Saved:
    """Bytes that a forward keeps for its backward pass."""

    blocks: tuple[int, ...]
    """Bytes of each block, double-stream blocks first."""
    inputs: int
    """Bytes of the input of one block: all that a checkpointed block keeps."""
    rest: int
    """Bytes outside of blocks: rotations, the last normalization, the loss."""
    read_layers: tuple[frozenset[str], ...]
    """Names of each block's linear layers whose weights the backward pass reads."""

    def peak(self, every: int, beside: Callable[[int], int]) -> tuple[int, int]:
        """Return the block in whose backward pass the most memory is in use, and the bytes that autograd holds then.

        ``every``: every n-th block is checkpointed, 0 is none; ``beside``: returns the bytes of other things that are on the
        device in the backward pass of a block.
        """
        kept, held = 0, []
        for place, whole in enumerate(self.blocks):
            again = every > 0 and place % every == 0
            held.append(self.rest + kept + whole + (self.inputs if again else 0))
            kept += self.inputs if again else whole
        most = max(range(len(held)), key=lambda place: held[place] + beside(place))
        return most, held[most]


@dataclass(eq=False)
class _Value:
    """A tensor, compared by identity: one that two operations save is counted once."""

    rows: int
    width: int
    item_bytes: int
    grad: bool
    """True if the backward pass goes through it."""
    whole: "_Value | None" = None
    """The tensor that it is a view of; None if it has memory of its own."""

    @property
    def size(self) -> int:
        return self.rows * self.width * self.item_bytes


@dataclass
class _Tape:
    walk: Walk
    held: dict[int, _Value] = field(default_factory=dict)
    others: int = 0
    """Bytes of tensors that only one operation can save."""
    read: set[str] = field(default_factory=set)
    """Names of layers whose weights the backward pass reads."""

    @property
    def total(self) -> int:
        return self.others + sum(value.size for value in self.held.values())

    def keep(self, value: _Value) -> None:
        value = value.whole or value
        self.held[id(value)] = value

    def linear(self, name: str, x: _Value, width: int) -> _Value:
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
        return _Value(x.rows, width, walk.item_bytes, x.grad or is_target)

    def adapter(self, name: str, x: _Value, width: int) -> None:
        if self.walk.lycoris_of is None:
            self._lora(x, width)
        else:
            self._lycoris(self.walk.lycoris_of(name), x, width)

    def _lycoris(self, options: LayerOptions, x: _Value, width: int) -> None:
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

    def _lora(self, x: _Value, width: int) -> None:
        """Count the low-rank layer of ``trainer.model.low_rank``: the input, the dropout mask, and the output of A."""
        walk = self.walk
        self.others += x.rows * walk.rank * walk.item_bytes
        if walk.uses_dora:
            self._dora(x, width)
            return
        self.keep(x)
        if walk.dropout:
            self.others += x.rows * x.width

    def _dora(self, x: _Value, width: int) -> None:
        """Count ``trainer.model.lora.Magnitude`` after PEFT's dropout: the mask, its result, the base's without the bias.

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

    def layer_norm(self, x: _Value) -> _Value:
        """Count input, mean and deviation."""
        if x.grad:
            self.keep(x)
            self.others += 2 * x.rows * (_FLOAT32 if self.walk.is_cuda else self.walk.item_bytes)
        return _Value(x.rows, x.width, x.item_bytes, x.grad)

    def head_norm(self, x: _Value) -> _Value:
        """Count norm and rotation of each head: the input, and one root a head."""
        if x.grad:
            self.keep(x)
            self.others += x.rows * self.walk.heads * _FLOAT32
        return _Value(x.rows, x.width, x.item_bytes, x.grad)

    def scale(self, x: _Value) -> _Value:
        """Count what ``x * (1 + scale) + shift`` saves."""
        if x.grad:
            self.others += self.walk.batch * x.width * self.walk.item_bytes
        return _Value(x.rows, x.width, x.item_bytes, x.grad)

    def gated(self, x: _Value, modulation: _Value, residual: _Value) -> _Value:
        """Count what ``residual + gate * x`` saves: the gate is a view of the modulation, all of which stays."""
        if x.grad:
            self.keep(modulation)
        return _Value(x.rows, x.width, x.item_bytes, x.grad or residual.grad)

    def attention(self, query: _Value, key: _Value, value: _Value) -> _Value:
        """Count scaled dot-product attention: operands, result, and one logarithm per row and head."""
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
    """Walk one forward and return what it keeps."""
    rows = walk.batch * walk.image_tokens, walk.batch * walk.text_tokens
    image, text = (_Value(count, walk.width, walk.item_bytes, False) for count in rows)
    blocks, read = [], []
    for index in range(walk.double_blocks):
        tape = _Tape(walk)
        image, text = _double(tape, f"transformer_blocks.{index}", image, text)
        blocks.append(tape.total)
        read.append(frozenset(tape.read))
    both = _Value(sum(rows), walk.width, walk.item_bytes, image.grad or text.grad)
    for index in range(walk.single_blocks):
        tape = _Tape(walk)
        queries = image if index == walk.single_blocks - 1 else both
        both = _single(tape, f"single_transformer_blocks.{index}", both, queries.rows)
        blocks.append(tape.total)
        read.append(frozenset(tape.read))
    tape = _Tape(walk)
    last = tape.layer_norm(both)
    tape.scale(last)
    prediction = 2 * rows[0] * TOKEN_CHANNELS * _FLOAT32
    head_width = walk.width // walk.heads
    rotations = 2 * (walk.image_tokens + walk.text_tokens) * head_width * walk.item_bytes
    return Saved(
        blocks=tuple(blocks), inputs=both.size, rest=tape.total + prediction + rotations, read_layers=tuple(read)
    )


def saved_by_adapter(walk: Walk, name: str, *, rows: int, width_in: int, width_out: int) -> int:
    """Return the bytes that the adapter of a layer outside of the blocks' walk keeps; ``rows``: of one picture's input."""
    tape = _Tape(walk)
    tape.adapter(name, _Value(walk.batch * rows, width_in, walk.item_bytes, False), width_out)
    return tape.total


def _double(tape: _Tape, name: str, image: _Value, text: _Value) -> tuple[_Value, _Value]:
    """Walk a LongCatImageTransformerBlock."""
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


def _single(tape: _Tape, name: str, both: _Value, query_rows: int) -> _Value:
    """Walk a LongCatImageSingleTransformerBlock with ``query_rows`` query rows: all rows, except in the last block."""
    walk = tape.walk
    modulation = _Value(walk.batch, 3 * walk.width, walk.item_bytes, False)
    x = tape.scale(tape.layer_norm(both))
    read = x if query_rows == x.rows else _Value(query_rows, x.width, x.item_bytes, x.grad, whole=x)
    mlp = tape.gelu(tape.linear(f"{name}.proj_mlp", read, MLP_RATIO * walk.width))
    query, key, value = (
        tape.linear(f"{name}.attn.to_{part}", read if part == "q" else x, walk.width) for part in "qkv"
    )
    out = tape.attention(tape.head_norm(query), tape.head_norm(key), value)
    joined = _Value(query_rows, out.width + mlp.width, max(out.item_bytes, mlp.item_bytes), out.grad or mlp.grad)
    projected = tape.linear(f"{name}.proj_out", joined, walk.width)
    return tape.clipped(tape.gated(projected, modulation, both))


def _cat(image: _Value, text: _Value) -> _Value:
    return _Value(image.rows + text.rows, image.width, image.item_bytes, image.grad or text.grad)
