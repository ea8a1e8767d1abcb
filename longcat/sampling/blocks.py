"""The transformer's two kinds of blocks as pure functions of their modules, with the updates of each row's adapters.

They compute the same as the blocks of diffusers 0.42's ``LongCatImageTransformer2DModel``. On a CPU a row's result is
bitwise independent of other rows: prompt and image rows of the attention's output are copied apart (with diffusers' view,
linear layers round differently), and sums that would be split by the number of rows are computed one row at a time.

Updates of LoKr and LoHa are computed from their factors, whose meaning is in ``longcat.adapter.weights.lycoris``.

Tensors of a block's whole width are deleted after their last use: they decide how many rows fit a device.

Shapes: R rows, N image tokens, L prompt rows, T = L + N, D the inner width, r rank.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor, nn

from longcat.adapter.weights.lycoris import pairs
from longcat.model.shape import DOUBLE_BLOCK_MODULATIONS, FLOAT16_MAX, SINGLE_BLOCK_MODULATIONS

Rope = Tensor
"""Rotations: (T, head width / 2) in complex numbers; on devices without them, cosines and sines (2, T, head width)."""


class Update(NamedTuple):
    """The change of a linear layer's output by one adapter, in rows of the forward that are next to one another."""

    rows: slice
    kind: str
    """lora, lokr or loha."""
    matrices: tuple[Tensor, ...]
    """Views of the adapter's slot: the layer's matrices as ``longcat.adapter.weights.lora.served`` has them, a LoRA's
    (in, r) and (r, out)."""
    scale: float = 1.0
    """Multiplies the last matrix: the scale of an image, rounded to the dtype of the slots."""
    rescaling: tuple[Tensor, Tensor] | None = None
    """With DoRA, a gain and a shift, each (out,) in float32, applied to the sum of the layer and this update."""

    def within(self, first: int, end: int) -> "Update | None":
        """Return the update of rows ``first`` to ``end``, numbered from ``first``; None if it changes none of them."""
        rows, _ = _overlap(self.rows, first, end)
        return None if rows is None else self._replace(rows=rows)


class SelectedUpdate(NamedTuple):
    """The change of a linear layer's output in every row, each by the LoRA of a slot; its shapes do not change.

    The matrices of a row are selected while the layer computes, so that those of one layer at a time are copied.
    """

    slots_R: Tensor
    scales_R11: Tensor
    down: Tensor
    """View of all slots, (S, in, r)."""
    up: Tensor
    """View of all slots, (S, r, out)."""

    def within(self, first: int, end: int) -> "SelectedUpdate":
        """Return the update of rows ``first`` to ``end``."""
        return self._replace(slots_R=self.slots_R[first:end], scales_R11=self.scales_R11[first:end])


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
    begin, stop = max(rows.start, first), min(rows.stop, end)
    if begin >= stop:
        return None, slice(0, 0)
    return slice(begin - first, stop - first), slice(begin - rows.start, stop - rows.start)


BlockUpdates = Mapping[str, Sequence[Any]]
"""By the name within its block, each ``LinearUpdate`` of a linear layer and each ``NormUpdate`` of a norm."""
LinearUpdate = Update | SelectedUpdate | InputUpdate | BiasUpdate
Updates = Mapping[str, BlockUpdates]
"""Updates by the block's name; a block without an entry is unchanged."""
BESIDE_BLOCKS = ""
"""The name of the block of the layers that belong to none: the embedder of image tokens and the output layer."""

_LONGEST_WHOLE_SUM = 384
"""Terms of a bfloat16 sum up to which no splitting was observed (oneDNN in torch 2.13); from 512 on it was."""


def double_block(
    block: nn.Module,
    text_RLD: Tensor,
    image_RND: Tensor,
    image_modulation: Tensor,
    text_modulation: Tensor,
    rope: Rope,
    updates: BlockUpdates,
) -> tuple[Tensor, Tensor]:
    """Compute a double block, in which prompt and image have separate weights and joint attention."""
    attn: Any = block.attn
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = image_modulation.chunk(DOUBLE_BLOCK_MODULATIONS, dim=-1)
    c_shift, c_scale, c_gate, c_mlp_shift, c_mlp_scale, c_mlp_gate = text_modulation.chunk(
        DOUBLE_BLOCK_MODULATIONS, dim=-1
    )

    image = _normed(image_RND, scale, shift)
    text = _normed(text_RLD, c_scale, c_shift)

    def heads(name: str, x: Tensor, norm: str | None = None) -> Tensor:
        return _heads(attn, name, x, norm, updates)

    query = torch.cat([heads("add_q_proj", text, "norm_added_q"), heads("to_q", image, "norm_q")], dim=1)
    key = torch.cat([heads("add_k_proj", text, "norm_added_k"), heads("to_k", image, "norm_k")], dim=1)
    value = torch.cat([heads("add_v_proj", text), heads("to_v", image)], dim=1)
    attended = _attend(_rotate(query, rope), _rotate(key, rope), value)
    text, image = attended[:, : text.shape[1]].contiguous(), attended[:, text.shape[1] :].contiguous()
    del query, key, value, attended

    image_RND = torch.addcmul(image_RND, gate, linear(attn.to_out[0], image, updates.get("attn.to_out.0")))
    image = _feed_forward(block.ff, _normed(image_RND, mlp_scale, mlp_shift), updates, "ff")
    image_RND = torch.addcmul(image_RND, mlp_gate, image)

    text_RLD = torch.addcmul(text_RLD, c_gate, linear(attn.to_add_out, text, updates.get("attn.to_add_out")))
    text = _feed_forward(block.ff_context, _normed(text_RLD, c_mlp_scale, c_mlp_shift), updates, "ff_context")
    text_RLD = torch.addcmul(text_RLD, c_mlp_gate, text)
    return _in_range(text_RLD), image_RND


def single_block(
    block: nn.Module, tokens_RTD: Tensor, modulation: Tensor, rope: Rope, updates: BlockUpdates, skip: int
) -> Tensor:
    """Compute a single block, in which prompt and image share all weights; omit the first ``skip`` tokens of the result."""
    attn: Any = block.attn
    proj_mlp: Any = block.proj_mlp
    proj_out: Any = block.proj_out
    shift, scale, gate = modulation.chunk(SINGLE_BLOCK_MODULATIONS, dim=-1)
    attending = _normed(tokens_RTD, scale, shift)
    querying = attending[:, skip:].contiguous()

    def heads(name: str, x: Tensor, norm: str | None = None) -> Tensor:
        return _heads(attn, name, x, norm, updates)

    query = _rotate(heads("to_q", querying, "norm_q"), rope[..., skip:, :])
    key = _rotate(heads("to_k", attending, "norm_k"), rope)
    attended = _attend(query, key, heads("to_v", attending))
    del query, key, attending
    mlp = F.gelu(linear(proj_mlp, querying, updates.get("proj_mlp")), approximate="tanh")
    del querying
    joined = torch.cat([attended, mlp], dim=2)
    del attended, mlp
    out = linear(proj_out, joined, updates.get("proj_out"))
    return _in_range(torch.addcmul(tokens_RTD[:, skip:], gate, out))


def _feed_forward(layers: Any, x: Tensor, updates: BlockUpdates, name: str) -> Tensor:
    hidden = F.gelu(linear(layers.net[0].proj, x, updates.get(f"{name}.net.0.proj")), approximate="tanh")
    return linear(layers.net[2], hidden, updates.get(f"{name}.net.2"))


def _normed(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)


def _rotate(x: Tensor, rope: Rope) -> Tensor:
    """Rotate pairs of numbers of (R, T, heads, width) by their token's angles, in float32."""
    if not rope.is_complex():
        rotated: Tensor = apply_rotary_emb(x, (rope[0], rope[1]), sequence_dim=1)
        return rotated
    pairs = torch.view_as_complex(x.float().view(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * rope[:, None]).flatten(3).to(x.dtype)


def _heads(attn: Any, name: str, x_RTD: Tensor, norm: str | None, updates: BlockUpdates) -> Tensor:
    """Compute a layer of the attention, (R, T, heads, width), and normalize each head."""
    y_RTD = linear(getattr(attn, name), x_RTD, updates.get(f"attn.{name}"))
    heads = y_RTD.view(*y_RTD.shape[:-1], attn.heads, -1)
    if norm is None:
        return heads
    layer = getattr(attn, norm)
    normed: Tensor = layer(heads)
    for rows, weight in updates.get(f"attn.{norm}", ()):
        normed[rows] = F.rms_norm(heads[rows], heads.shape[-1:], eps=layer.eps) * weight
    return normed


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend over (R, T, heads, width), and join the heads to (R, T, D)."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def _in_range(x: Tensor) -> Tensor:
    """Clip float16, which overflows in deep blocks; other types do not."""
    return x.clip(-FLOAT16_MAX, FLOAT16_MAX) if x.dtype == torch.float16 else x


def linear(layer: nn.Module, x_RTD: Tensor, updates: Sequence[LinearUpdate] | None) -> Tensor:
    """Return ``layer(x)`` plus each row's updates."""
    base_x = _base_input(x_RTD, updates or ())
    y = _row_by_row(layer, base_x) if _sums_depend_on_rows(base_x) else layer(base_x)
    for update in updates or ():
        if isinstance(update, BiasUpdate):
            y[update.rows] += update.bias
        elif isinstance(update, SelectedUpdate):
            down, up = update.down.index_select(0, update.slots_R), update.up.index_select(0, update.slots_R)
            _apply_lora(y, x_RTD, down, up * update.scales_R11)
        elif isinstance(update, Update):
            _apply(update, y[update.rows], x_RTD[update.rows])
    return y


def _apply(update: Update, y: Tensor, x_RTD: Tensor) -> None:
    *first, last = update.matrices
    _APPLY[update.kind](y, x_RTD, *first, last if update.scale == 1 else last * update.scale)
    if update.rescaling is not None:
        gain, shift = update.rescaling
        y.copy_(y * gain + shift)


def _base_input(x_RTD: Tensor, updates: Sequence[LinearUpdate]) -> Tensor:
    """Return the input of the base weight. The changes of several adapters add up, as those of their weights do."""
    changes = [update for update in updates if isinstance(update, InputUpdate)]
    if not changes:
        return x_RTD
    changed = x_RTD.clone()
    for rows, change in changes:
        changed[rows] += x_RTD[rows] * change
    return changed


def _apply_lora(y: Tensor, x_RTD: Tensor, down: Tensor, up: Tensor) -> None:
    """Add x A^T B^T; the matrices are those of each row, or of all rows, which are not copied for each."""
    hidden = _product(x_RTD, down)
    up = _each_row(up, y)
    if not _sums_depend_on_rows(hidden):
        y.baddbmm_(hidden, up)
        return
    for i in range(y.shape[0]):
        y[i : i + 1].baddbmm_(hidden[i : i + 1], up[i : i + 1])


def _apply_loha(y: Tensor, x_RTD: Tensor, down1: Tensor, down2: Tensor, up1: Tensor, up2: Tensor) -> None:
    _apply_lora(y, x_RTD, pairs(down1, down2, -1), pairs(up1, up2, -2))


def _apply_lokr(y: Tensor, x_RTD: Tensor, *factors: Tensor) -> None:
    """Add W1 X W2^T for each token's groups X (b, d): first the products with W2, or with its two factors, then with W1."""
    *chain, mixing = factors
    tokens, groups = x_RTD.shape[1], mixing.shape[-1]
    hidden = x_RTD.reshape(x_RTD.shape[0], tokens * groups, -1)
    for matrix in chain:
        hidden = _product(hidden, matrix)
    y += torch.matmul(_each_row(mixing, y)[:, None], hidden.unflatten(1, (tokens, groups))).flatten(2)


_APPLY: Mapping[str, Callable[..., None]] = {"lora": _apply_lora, "loha": _apply_loha, "lokr": _apply_lokr}


def _sums_depend_on_rows(x_RTD: Tensor) -> bool:
    """Return True if a product over these inputs may round differently with other rows in the batch.

    On CPUs with matrix units (AMX), oneDNN splits long sums in bfloat16 by how many rows there are.
    """
    return (
        x_RTD.dtype is torch.bfloat16
        and x_RTD.device.type == "cpu"
        and x_RTD.shape[-1] > _LONGEST_WHOLE_SUM
        and not torch.compiler.is_compiling()
    )


def _each_row(matrix: Tensor, rows: Tensor) -> Tensor:
    return matrix.expand(rows.shape[0], *matrix.shape[-2:])


def _product(x_RTD: Tensor, down: Tensor) -> Tensor:
    down = _each_row(down, x_RTD)
    if not _sums_depend_on_rows(x_RTD):
        return torch.bmm(x_RTD, down)
    return torch.cat([torch.bmm(x_RTD[i : i + 1], down[i : i + 1]) for i in range(x_RTD.shape[0])])


def _row_by_row(layer: nn.Module, x_RTD: Tensor) -> Tensor:
    return torch.cat([layer(x_RTD[i : i + 1]) for i in range(x_RTD.shape[0])])
