"""The transformer's two kinds of blocks as pure functions of their modules, with low-rank updates of each row's own.

They compute what the blocks of diffusers 0.42's ``LongCatImageTransformer2DModel`` compute. On a CPU a row's result is
bitwise independent of its neighbours: prompt and image rows of the attention's output are copied apart (diffusers' view
makes linear layers round differently), and sums that would be split by the number of rows see one row at a time.

Shapes: R rows, N image tokens, L prompt rows, T = L + N, D the inner width, r rank.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor, nn

Rope = Tensor
"""Rotations: (T, head width / 2) of complex numbers; where those are not to be had, cosines and sines (2, T, head width)."""


class Update(NamedTuple):
    """What adapters do to a linear layer, in some rows of the forward."""

    rows: slice | None
    """None: all."""
    down: Tensor
    """(rows, in, r)."""
    up: Tensor
    """(rows, r, out), scaled."""
    rescaling: tuple[Tensor, Tensor] | None = None
    """With DoRA, a gain and a shift, each (rows, 1, out) in float32, for what the layer and this update give."""


BlockUpdates = Mapping[str, Sequence[Update]]
"""By the layer's name within its block."""
Updates = Mapping[str, BlockUpdates]
"""By the block's name; what is not there changes nothing."""

_LONGEST_WHOLE_SUM = 384
"""Terms of a bfloat16 sum up to which splitting was not seen (oneDNN in torch 2.13); from 512 on it was."""


def double_block(
    block: nn.Module,
    text_RLD: Tensor,
    image_RND: Tensor,
    image_modulation: Tensor,
    text_modulation: Tensor,
    rope: Rope,
    updates: BlockUpdates,
) -> tuple[Tensor, Tensor]:
    """One of the blocks in which prompt and image have weights of their own and attend together."""
    attn: Any = block.attn
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = image_modulation.chunk(6, dim=-1)
    c_shift, c_scale, c_gate, c_mlp_shift, c_mlp_scale, c_mlp_gate = text_modulation.chunk(6, dim=-1)

    image = _normed(image_RND, scale, shift)
    text = _normed(text_RLD, c_scale, c_shift)

    def heads(name: str, x: Tensor) -> Tensor:
        return _heads(_linear(getattr(attn, name), x, updates.get(f"attn.{name}")), attn.heads)

    query = torch.cat([attn.norm_added_q(heads("add_q_proj", text)), attn.norm_q(heads("to_q", image))], dim=1)
    key = torch.cat([attn.norm_added_k(heads("add_k_proj", text)), attn.norm_k(heads("to_k", image))], dim=1)
    value = torch.cat([heads("add_v_proj", text), heads("to_v", image)], dim=1)
    attended = _attend(_rotate(query, rope), _rotate(key, rope), value)
    text, image = attended[:, : text.shape[1]].contiguous(), attended[:, text.shape[1] :].contiguous()

    image_RND = torch.addcmul(image_RND, gate, _linear(attn.to_out[0], image, updates.get("attn.to_out.0")))
    image = _feed_forward(block.ff, _normed(image_RND, mlp_scale, mlp_shift), updates, "ff")
    image_RND = torch.addcmul(image_RND, mlp_gate, image)

    text_RLD = torch.addcmul(text_RLD, c_gate, _linear(attn.to_add_out, text, updates.get("attn.to_add_out")))
    text = _feed_forward(block.ff_context, _normed(text_RLD, c_mlp_scale, c_mlp_shift), updates, "ff_context")
    text_RLD = torch.addcmul(text_RLD, c_mlp_gate, text)
    return _in_range(text_RLD), image_RND


def single_block(
    block: nn.Module, tokens_RTD: Tensor, modulation: Tensor, rope: Rope, updates: BlockUpdates, skip: int
) -> Tensor:
    """One of the blocks in which prompt and image share all weights; the first ``skip`` tokens are attended and left out."""
    attn: Any = block.attn
    shift, scale, gate = modulation.chunk(3, dim=-1)
    attending = _normed(tokens_RTD, scale, shift)
    asking = attending[:, skip:].contiguous()

    def heads(name: str, x: Tensor) -> Tensor:
        return _heads(_linear(getattr(attn, name), x, updates.get(f"attn.{name}")), attn.heads)

    query = _rotate(attn.norm_q(heads("to_q", asking)), rope[..., skip:, :])
    key = _rotate(attn.norm_k(heads("to_k", attending)), rope)
    attended = _attend(query, key, heads("to_v", attending))
    mlp = F.gelu(_linear(block.proj_mlp, asking, updates.get("proj_mlp")), approximate="tanh")  # type: ignore[arg-type]
    out = _linear(block.proj_out, torch.cat([attended, mlp], dim=2), updates.get("proj_out"))  # type: ignore[arg-type]
    return _in_range(torch.addcmul(tokens_RTD[:, skip:], gate, out))


def _feed_forward(layers: Any, x: Tensor, updates: BlockUpdates, name: str) -> Tensor:
    hidden = F.gelu(_linear(layers.net[0].proj, x, updates.get(f"{name}.net.0.proj")), approximate="tanh")
    return _linear(layers.net[2], hidden, updates.get(f"{name}.net.2"))


def _normed(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)


def _rotate(x: Tensor, rope: Rope) -> Tensor:
    """Turn pairs of numbers of (R, T, heads, width) by their token's angles, in float32."""
    if not rope.is_complex():
        rotated: Tensor = apply_rotary_emb(x, (rope[0], rope[1]), sequence_dim=1)
        return rotated
    pairs = torch.view_as_complex(x.float().view(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * rope[:, None]).flatten(3).to(x.dtype)


def _heads(x_RTD: Tensor, count: int) -> Tensor:
    """(R, T, D) to (R, T, heads, width)."""
    return x_RTD.view(*x_RTD.shape[:-1], count, -1)


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention over (R, T, heads, width), joined to (R, T, D)."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def _in_range(x: Tensor) -> Tensor:
    """float16 overflows in deep blocks; the other types do not."""
    return x.clip(-65504, 65504) if x.dtype == torch.float16 else x


def _linear(layer: nn.Module, x_RTD: Tensor, updates: Sequence[Update] | None) -> Tensor:
    """``layer(x)`` plus each row's own low-rank updates."""
    y = _row_by_row(layer, x_RTD) if _sums_depend_on_rows(x_RTD) else layer(x_RTD)
    for rows, down, up, rescaling in updates or ():
        if rows is None:
            y.baddbmm_(_product(x_RTD, down), up)
            continue
        part = y[rows].baddbmm_(_product(x_RTD[rows], down), up)
        if rescaling is not None:
            gain, shift = rescaling
            part.copy_(part * gain + shift)
    return y


def _sums_depend_on_rows(x_RTD: Tensor) -> bool:
    """Whether a product over these inputs may round differently with neighbours.

    On CPUs with matrix units (AMX), oneDNN splits long sums in bfloat16 by how many rows there are.
    """
    return (
        x_RTD.dtype is torch.bfloat16
        and x_RTD.device.type == "cpu"
        and x_RTD.shape[-1] > _LONGEST_WHOLE_SUM
        and not torch.compiler.is_compiling()
    )


def _product(x_RTD: Tensor, down: Tensor) -> Tensor:
    if not _sums_depend_on_rows(x_RTD):
        return torch.bmm(x_RTD, down)
    return torch.cat([torch.bmm(x_RTD[i : i + 1], down[i : i + 1]) for i in range(x_RTD.shape[0])])


def _row_by_row(layer: nn.Module, x_RTD: Tensor) -> Tensor:
    return torch.cat([layer(x_RTD[i : i + 1]) for i in range(x_RTD.shape[0])])
