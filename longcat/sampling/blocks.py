"""The transformer's two kinds of blocks as pure functions of their modules, with the updates of each row's adapters.

They compute the same as the blocks of diffusers 0.42's ``LongCatImageTransformer2DModel``. On a CPU a row's result is
bitwise independent of other rows: prompt and image rows of the attention's output are copied apart (with diffusers' view,
linear layers round differently), and sums that would be split by the number of rows are computed one row at a time.

Updates of LoKr and LoHa are computed from their factors, whose meaning is in ``longcat.adapter.weights.lycoris``.

Tensors of a block's whole width are deleted after their last use: they decide how many rows fit a device.

Shapes: R rows, N image tokens, L prompt rows, T = L + N, D the inner width, r rank.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor, nn

from longcat.adapter.weights.lycoris import pairs
from longcat.model.shape import DOUBLE_BLOCK_MODULATIONS, FLOAT16_MAX, SINGLE_BLOCK_MODULATIONS
from longcat.sampling.updates.update import BiasUpdate, BlockUpdates, InputUpdate, LinearUpdate, Rescaling, Update

Rope = Tensor
"""Rotations: (T, head width / 2) in complex numbers; on devices without them, cosines and sines (2, T, head width)."""

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
        match update:
            case BiasUpdate(rows, bias):
                y[rows] += bias
            case Rescaling(rows, gain, shift):
                _rescale(y[rows], gain, shift)
            case Update(rows):
                _apply(update, y[rows], x_RTD[rows])
    return y


def _apply(update: Update, y: Tensor, x_RTD: Tensor) -> None:
    *first, last = (_of_rows(matrices, update.slots_R) for matrices in update.matrices)
    _APPLY[update.kind](y, x_RTD, *first, last if update.scales_R11 is None else last * update.scales_R11)


def _of_rows(matrices: Tensor, slots_R: Tensor | None) -> Tensor:
    """Return each row's matrix, (R, ., .), or the one of all rows, (1, ., .)."""
    return matrices if slots_R is None else matrices.index_select(0, slots_R)


def _rescale(y: Tensor, gain: Tensor, shift: Tensor) -> None:
    """Compute y * gain + shift in float32."""
    if y.dtype == gain.dtype:
        torch.addcmul(shift, y, gain, out=y)
    else:
        y.copy_(torch.addcmul(shift, y.float(), gain))


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
    hidden, up = _product(x_RTD, down), _each_row(up, y)
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
    rows, tokens = x_RTD.shape[:2]
    results, groups = mixing.shape[-2:]
    hidden = x_RTD.reshape(rows, tokens * groups, -1)
    for matrix in chain:
        hidden = _product(hidden, matrix)
    mixing = mixing[:, None].expand(rows, tokens, -1, -1).flatten(0, 1)
    y.view(rows * tokens, results, -1).baddbmm_(mixing, hidden.view(rows * tokens, groups, -1))


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


def _each_row(matrices: Tensor, rows: Tensor) -> Tensor:
    return matrices.expand(rows.shape[0], -1, -1)


def _product(x_RTD: Tensor, down: Tensor) -> Tensor:
    down = _each_row(down, x_RTD)
    if not _sums_depend_on_rows(x_RTD):
        return torch.bmm(x_RTD, down)
    return torch.cat([torch.bmm(x_RTD[i : i + 1], down[i : i + 1]) for i in range(x_RTD.shape[0])])


def _row_by_row(layer: nn.Module, x_RTD: Tensor) -> Tensor:
    return torch.cat([layer(x_RTD[i : i + 1]) for i in range(x_RTD.shape[0])])
