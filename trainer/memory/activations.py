"""The activations that autograd keeps: a training forward of the transformer, walked on sizes alone. No torch.

The walk follows diffusers' ``transformer_longcat_image.py`` as ``trainer.model.forward`` and
``trainer.model.low_rank`` compute it, and PEFT's layer with DoRA. It records the tensors that each operation saves for its
backward pass, each tensor once. They depend on what is differentiated (the base is frozen, so a linear layer saves nothing
by itself), and on how weights are stored:

- optimum-quanto saves the input of every linear layer, needed or not;
- torchao saves the dequantized weight: without checkpointing, the whole base again, at full precision;
- of an offloaded base, other layers save the weight that was brought to the device (``trainer.memory.offloading``).
"""

from collections.abc import Callable
from dataclasses import dataclass

from longcat.model.shape import MLP_RATIO, TOKEN_CHANNELS
from trainer.memory.tape import Tape, Value, Walk

_FLOAT32 = 4
_OUTPUTS = ("to_out.0", "to_add_out")


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


def saved(walk: Walk) -> Saved:
    """Walk one forward and return what it keeps."""
    rows = walk.batch * walk.image_tokens, walk.batch * walk.text_tokens
    image, text = (Value(count, walk.width, walk.item_bytes, False) for count in rows)
    blocks, read = [], []
    for index in range(walk.double_blocks):
        tape = Tape(walk)
        image, text = _double(tape, f"transformer_blocks.{index}", image, text)
        blocks.append(tape.total)
        read.append(frozenset(tape.read))
    both = Value(sum(rows), walk.width, walk.item_bytes, image.grad or text.grad)
    for index in range(walk.single_blocks):
        tape = Tape(walk)
        queries = image if index == walk.single_blocks - 1 else both
        both = _single(tape, f"single_transformer_blocks.{index}", both, queries.rows)
        blocks.append(tape.total)
        read.append(frozenset(tape.read))
    tape = Tape(walk)
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
    tape = Tape(walk)
    tape.adapter(name, Value(walk.batch * rows, width_in, walk.item_bytes, False), width_out)
    return tape.total


def _double(tape: Tape, name: str, image: Value, text: Value) -> tuple[Value, Value]:
    """Walk a LongCatImageTransformerBlock."""
    walk = tape.walk
    of_image, of_text = (Value(walk.batch, 6 * walk.width, walk.item_bytes, False) for _ in range(2))
    x, y = tape.scale(tape.layer_norm(image)), tape.scale(tape.layer_norm(text))
    query, key, value = (tape.linear(f"{name}.attn.to_{part}", x, walk.width) for part in "qkv")
    more = [tape.linear(f"{name}.attn.add_{part}_proj", y, walk.width) for part in "qkv"]
    query, key = tape.head_norm(query), tape.head_norm(key)
    joint = (_cat(query, tape.head_norm(more[0])), _cat(key, tape.head_norm(more[1])), _cat(value, more[2]))
    out = tape.attention(*joint)
    parts = (Value(part.rows, out.width, out.item_bytes, out.grad, whole=out) for part in (image, text))
    x, y = (tape.linear(f"{name}.attn.{layer}", part, walk.width) for layer, part in zip(_OUTPUTS, parts, strict=True))
    image, text = tape.gated(x, of_image, image), tape.gated(y, of_text, text)
    x = tape.feed_forward(f"{name}.ff", tape.scale(tape.layer_norm(image)))
    y = tape.feed_forward(f"{name}.ff_context", tape.scale(tape.layer_norm(text)))
    return tape.gated(x, of_image, image), tape.clipped(tape.gated(y, of_text, text))


def _single(tape: Tape, name: str, both: Value, query_rows: int) -> Value:
    """Walk a LongCatImageSingleTransformerBlock with ``query_rows`` query rows: all rows, except in the last block."""
    walk = tape.walk
    modulation = Value(walk.batch, 3 * walk.width, walk.item_bytes, False)
    x = tape.scale(tape.layer_norm(both))
    read = x if query_rows == x.rows else Value(query_rows, x.width, x.item_bytes, x.grad, whole=x)
    mlp = tape.gelu(tape.linear(f"{name}.proj_mlp", read, MLP_RATIO * walk.width))
    query, key, value = (
        tape.linear(f"{name}.attn.to_{part}", read if part == "q" else x, walk.width) for part in "qkv"
    )
    out = tape.attention(tape.head_norm(query), tape.head_norm(key), value)
    joined = Value(query_rows, out.width + mlp.width, max(out.item_bytes, mlp.item_bytes), out.grad or mlp.grad)
    projected = tape.linear(f"{name}.proj_out", joined, walk.width)
    return tape.clipped(tape.gated(projected, modulation, both))


def _cat(image: Value, text: Value) -> Value:
    return Value(image.rows + text.rows, image.width, image.item_bytes, image.grad or text.grad)
