"""The transformer's forward over rows that have nothing to do with each other, each with its own time and adapters.

It computes what diffusers 0.42's ``LongCatImageTransformer2DModel.forward`` computes, from that model's own modules, and
saves what a step need not do again: the prompt's embedding is projected once a picture; modulations are computed once a
time, for whoever is at that time; rotations once a size; the last block leaves out prompt rows that nobody reads. On a CPU
the rows of a forward are shared out among the cores, because small matrices do not keep several cores busy.

A row's result is bitwise independent of its neighbours on a CPU: see ``longcat.blocks``; layers that see one vector a row
see one row at a time.

Shapes: R rows, N image tokens, C = 64, L prompt rows, T = L + N, D the inner width, J the text encoder's width, M numbers of
modulation a row.
"""

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import LongCatImageTransformer2DModel
from torch import Tensor

from longcat import latents
from longcat.blocks import BlockUpdates, Rope, Update, Updates, double_block, single_block
from longcat.threads import one_core

_NO_UPDATES: BlockUpdates = {}
_MODULATION_BYTES = 256 * 2**20
_MOST_ROPES = 16


class Forward:
    """A transformer as service and trainer call it, and what they need not compute twice. Any thread may call it."""

    def __init__(self, transformer: LongCatImageTransformer2DModel, *, compiled: bool = False) -> None:
        """``compiled``: run the blocks through ``torch.compile``, for any number of rows."""
        self.transformer = transformer
        self.compiled = compiled
        weight = transformer.x_embedder.weight
        self._threads = torch.get_num_threads() if weight.device.type == "cpu" else 1
        self._pool = ThreadPoolExecutor(self._threads, "rows") if self._threads > 1 else None
        self._double: Callable[..., tuple[Tensor, Tensor]] = double_block
        self._single: Callable[..., Tensor] = single_block
        if compiled:
            self._double = torch.compile(double_block, dynamic=True)
            self._single = torch.compile(single_block, dynamic=True)
        # With ``--offload model``, accelerate moves the transformer when it is called, and this calls its parts.
        self._offload_hook: Any = getattr(transformer, "_hf_hook", None)
        self._lock = threading.Lock()
        self._modulations: OrderedDict[float, Tensor] = OrderedDict()
        self._ropes: OrderedDict[tuple[int, int, int], Rope] = OrderedDict()

    @torch.no_grad()
    def context(self, embeds_1LJ: Tensor) -> Tensor:
        """A prompt's embedding as the blocks read it, (1, L, D)."""
        self._bring_weights()
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
        self._bring_weights()
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
                if len(self._ropes) > _MOST_ROPES:
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
        self._bring_weights()
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
            changes = updates.get(f"transformer_blocks.{i}", _NO_UPDATES)
            text_RLD, image_RND = self._double(block, text_RLD, image_RND, take(6), take(6), rope, changes)
        tokens_RTD, prompt_rows = torch.cat([text_RLD, image_RND], dim=1), text_RLD.shape[1]
        last = len(model.single_transformer_blocks) - 1
        for i, block in enumerate(model.single_transformer_blocks):
            changes = updates.get(f"single_transformer_blocks.{i}", _NO_UPDATES)
            tokens_RTD = self._single(block, tokens_RTD, take(3), rope, changes, prompt_rows if i == last else 0)
        scale, shift = take(2).chunk(2, dim=-1)
        velocity: Tensor = model.proj_out(model.norm_out.norm(tokens_RTD) * (1 + scale) + shift)
        return velocity

    def _bring_weights(self) -> None:
        """To the device, with ``--offload model``."""
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
