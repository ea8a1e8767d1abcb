"""The transformer's forward over rows that have nothing to do with each other, each with its own time and adapters.

It computes what diffusers 0.42's ``LongCatImageTransformer2DModel.forward`` computes, from that model's own modules, and
saves what a step need not do again: the prompt's embedding is projected once a picture; modulations are computed once a
time, for whoever is at that time; rotations once a size; the last block leaves out prompt rows that nobody reads. On a CPU
the rows of a forward are shared out among the cores, because small matrices do not keep several cores busy.

A row's result is bitwise independent of its neighbours on a CPU: prompt and image rows of the attention's output are copied
apart (diffusers' view makes linear layers round differently), and layers that see one vector a row see one row at a time.

Shapes: R rows, N image tokens, C = 64, L prompt rows, T = L + N, D the inner width, J the text encoder's width, M numbers of
modulation a row, r rank.
"""

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from diffusers import LongCatImageTransformer2DModel
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor, nn

from longcat import latents
from longcat.threads import one_core

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

_NONE: BlockUpdates = {}
_MODULATION_BYTES = 256 * 2**20
_SIZES = 16
_LONGEST_WHOLE_SUM = 384
"""Terms of a bfloat16 sum up to which splitting was not seen (oneDNN in torch 2.13); from 512 on it was."""


class Forward:
    """A transformer as service and trainer call it, and what they need not compute twice. Any thread may call it."""

    def __init__(self, transformer: LongCatImageTransformer2DModel, *, compiled: bool = False) -> None:
        """``compiled``: run the blocks through ``torch.compile``, for any number of rows."""
        self.transformer = transformer
        self.compiled = compiled
        weight = transformer.x_embedder.weight
        self._threads = torch.get_num_threads() if weight.device.type == "cpu" else 1
        self._pool = ThreadPoolExecutor(self._threads, "rows") if self._threads > 1 else None
        self._double: Callable[..., tuple[Tensor, Tensor]] = _double_block
        self._single: Callable[..., Tensor] = _single_block
        if compiled:
            self._double = torch.compile(_double_block, dynamic=True)
            self._single = torch.compile(_single_block, dynamic=True)
        # With ``--offload model``, accelerate moves the transformer when it is called, and this calls its parts.
        self._offload_hook: Any = getattr(transformer, "_hf_hook", None)
        self._lock = threading.Lock()
        self._modulations: OrderedDict[float, Tensor] = OrderedDict()
        self._ropes: OrderedDict[tuple[int, int, int], Rope] = OrderedDict()

    @torch.no_grad()
    def context(self, embeds_1LJ: Tensor) -> Tensor:
        """A prompt's embedding as the blocks read it, (1, L, D)."""
        self._bring()
        with one_core(embeds_1LJ.device):
            projected: Tensor = self.transformer.context_embedder(embeds_1LJ)
        return projected

    @torch.no_grad()
    def modulation(self, time: Tensor) -> Tensor:
        """Shifts, scales and gates of every block at a time, (M,). ``time``: 0..1, 0-dim, in the model's dtype."""
        key = float(time)
        with self._lock:
            if key in self._modulations:
                self._modulations.move_to_end(key)
                return self._modulations[key]
        self._bring()
        layers = [
            *(norm for block in self.transformer.transformer_blocks for norm in (block.norm1, block.norm1_context)),
            *(block.norm for block in self.transformer.single_transformer_blocks),
            self.transformer.norm_out,
        ]
        with one_core(time.device):
            vector_1D = F.silu(self.transformer.time_embed(time.reshape(1) * 1000, time.dtype))
            made = torch.cat([layer.linear(vector_1D) for layer in layers], dim=-1)[0]
        with self._lock:
            self._modulations[key] = made
            while len(self._modulations) > max(1, _MODULATION_BYTES // made.nbytes):
                self._modulations.popitem(last=False)
        return made

    def rope(self, *, height_px: int, width_px: int, prompt_rows: int) -> Rope:
        """Rotations of the prompt's rows and the image's tokens."""
        key = (height_px, width_px, prompt_rows)
        with self._lock:
            if key not in self._ropes:
                text = latents.text_ids(prompt_rows)
                image = latents.image_ids(height_px=height_px, width_px=width_px, max_tokens=prompt_rows)
                device = self.transformer.proj_out.bias.device if self._offload_hook is None else None
                ids = torch.cat([text, image]).to(device or self._offload_hook.execution_device)
                self._ropes[key] = self._rotations(ids)
                if len(self._ropes) > _SIZES:
                    self._ropes.popitem(last=False)
            self._ropes.move_to_end(key)
            return self._ropes[key]

    def _rotations(self, ids_T3: Tensor) -> Rope:
        cosines, sines = self.transformer.pos_embed(ids_T3)
        if self.compiled or ids_T3.device.type == "mps":
            return torch.stack([cosines, sines])
        return torch.complex(cosines[:, ::2].contiguous(), sines[:, ::2].contiguous())  # each is there twice

    @torch.no_grad()
    def __call__(
        self,
        latents_RNC: Tensor,
        context_RLD: Tensor,
        modulation_RM: Tensor,
        rope: Rope,
        updates: Updates | None = None,
    ) -> Tensor:
        """Velocities (R, N, C)."""
        self._bring()
        rows = latents_RNC.shape[0]
        shares = min(rows, self._threads)
        if self._pool is None:
            return self._run(latents_RNC, context_RLD, modulation_RM, rope, updates)
        edges = [rows * i // shares for i in range(shares + 1)]
        futures = [
            self._pool.submit(
                self._run_share,
                latents_RNC[a:b],
                context_RLD[a:b],
                modulation_RM[a:b],
                rope,
                _rows_of(updates, a, b),
            )
            for a, b in itertools.pairwise(edges)
        ]
        return torch.cat([future.result() for future in futures])

    @torch.no_grad()  # grad mode is a thread's own
    def _run_share(self, *inputs: Any) -> Tensor:
        with one_core(
            torch.device("cpu")
        ):  # sums over several come out differently, and would depend on the neighbours
            return self._run(*inputs)

    def _run(
        self, latents_RNC: Tensor, context_RLD: Tensor, modulation_RM: Tensor, rope: Rope, updates: Updates | None
    ) -> Tensor:
        updates = updates or {}
        model = self.transformer
        width, used = model.inner_dim, 0

        def take(count: int) -> Tensor:
            nonlocal used
            part = modulation_RM[:, None, used : used + count * width]
            used += count * width
            return part

        image_RND, text_RLD = model.x_embedder(latents_RNC), context_RLD
        for i, block in enumerate(model.transformer_blocks):
            changes = updates.get(f"transformer_blocks.{i}", _NONE)
            text_RLD, image_RND = self._double(block, text_RLD, image_RND, take(6), take(6), rope, changes)
        tokens_RTD, prompt_rows = torch.cat([text_RLD, image_RND], dim=1), text_RLD.shape[1]
        last = len(model.single_transformer_blocks) - 1
        for i, block in enumerate(model.single_transformer_blocks):
            changes = updates.get(f"single_transformer_blocks.{i}", _NONE)
            tokens_RTD = self._single(block, tokens_RTD, take(3), rope, changes, prompt_rows if i == last else 0)
        scale, shift = take(2).chunk(2, dim=-1)
        velocity: Tensor = model.proj_out(model.norm_out.norm(tokens_RTD) * (1 + scale) + shift)
        return velocity

    def _bring(self) -> None:
        if self._offload_hook is not None:
            self._offload_hook.pre_forward(self.transformer)


def _rows_of(updates: Updates | None, first: int, end: int) -> Updates | None:
    """The updates of rows ``first`` to ``end``, numbered from ``first``."""
    if updates is None:
        return None

    def share(update: Update) -> Update | None:
        rows, down, up, rescaling = update
        if rows is None:
            assert rescaling is None
            return Update(None, down[first:end], up[first:end])
        begin, stop = max(rows.start, first), min(rows.stop, end)
        inside = slice(begin - rows.start, stop - rows.start)
        if begin >= stop:
            return None
        if rescaling is not None:
            rescaling = rescaling[0][inside], rescaling[1][inside]
        return Update(slice(begin - first, stop - first), down[inside], up[inside], rescaling)

    return {
        block: {layer: [part for update in several if (part := share(update))] for layer, several in changes.items()}
        for block, changes in updates.items()
    }


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


def _double_block(
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


def _single_block(
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
