"""The transformer's forward over independent rows, each with its own time and adapters.

It computes the same as diffusers 0.42's ``LongCatImageTransformer2DModel.forward``, from that model's modules, and avoids
repeated work: the prompt's embedding is projected once for an image; modulations are computed once for a time and shared by
all rows at that time; rotations once for a size; the last block leaves out prompt rows, which no layer reads. On a CPU
the rows of a forward are divided among the cores, because small matrices do not use several cores well.

On a CPU, a row's result is bitwise independent of other rows: see ``longcat.sampling.blocks``. Layers whose input is one
vector for each row process one row at a time.

Shapes: R rows, N image tokens (those of a reference included), C = 64, L prompt rows, T = L + N, D the inner width, J the
text encoder's width, M numbers of modulation a row.
"""

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import torch
from diffusers import LongCatImageTransformer2DModel
from torch import Tensor

from longcat.adapter.modules import IMAGE_EMBEDDER, OUTPUT
from longcat.model.device.threads import one_core
from longcat.model.shape import (
    DOUBLE_BLOCK_MODULATIONS,
    MODULATION_CACHE_BYTES,
    OUTPUT_MODULATIONS,
    SINGLE_BLOCK_MODULATIONS,
    image_tokens,
)
from longcat.sampling import flow, latents
from longcat.sampling.blocks import Rope, double_block, linear, single_block
from longcat.sampling.conditioning import UNCHANGED, ConditioningUpdates, modulate, project_prompt
from longcat.sampling.encoding.source_picture import steps_kept
from longcat.sampling.updates.update import BESIDE_BLOCKS, BlockUpdates, Updates

_NO_UPDATES: BlockUpdates = {}
_MAX_ROPES = 16


class Base(Protocol):
    """The part of a model that ``start`` needs; ``longcat.model.loading.Components`` has it."""

    @property
    def device(self) -> torch.device:
        """Device that computes."""

    @property
    def dtype(self) -> torch.dtype:
        """Compute dtype."""

    @property
    def scheduler_config(self) -> Mapping[str, Any]:
        """Scheduler configuration, which gives the noise levels."""


class Forward:
    """The forward of a transformer, with caches of modulations and rotations. Any thread may call it."""

    def __init__(
        self, transformer: LongCatImageTransformer2DModel, device: torch.device, *, compiled: bool = False
    ) -> None:
        """Wrap a transformer that computes on ``device``; its weights may be elsewhere until they are needed.

        ``compiled``: run the blocks through ``torch.compile``, for any number of rows.
        """
        self.transformer = transformer
        self.device = device
        self.compiled = compiled
        self._threads = torch.get_num_threads() if device.type == "cpu" else 1
        self._pool = ThreadPoolExecutor(self._threads, "rows") if self._threads > 1 else None
        self._double: Callable[..., tuple[Tensor, Tensor]] = double_block
        self._single: Callable[..., Tensor] = single_block
        if compiled:
            self._double = torch.compile(double_block, dynamic=True)
            self._single = torch.compile(single_block, dynamic=True)
        self._lock = threading.Lock()
        self._modulations: OrderedDict[tuple[float, Hashable], Tensor] = OrderedDict()
        self._ropes: OrderedDict[tuple[int, int, int, bool], Rope] = OrderedDict()

    @torch.no_grad()
    def context(self, embeds_1LJ: Tensor, updates: ConditioningUpdates = UNCHANGED) -> Tensor:
        """Project a prompt's embedding to the blocks' width, (1, L, D)."""
        with one_core(self.device):
            return project_prompt(self.transformer, embeds_1LJ, updates)

    @torch.no_grad()
    def modulations(self, times_K: Tensor, updates: ConditioningUpdates = UNCHANGED) -> tuple[Tensor, ...]:
        """Return the shifts, scales and gates of all blocks at K times, (M,) each.

        ``times_K``: 0..1, on the CPU, in the model's dtype. Times without an entry in the cache are computed together, so
        that the weights are read once; on a CPU one by one, because a product rounds differently with other rows. A set of
        adapters that changes modulations has entries of its own.
        """
        keys = [(time, updates.time_key) for time in times_K.tolist()]
        with self._lock:
            found = {key: self._modulations[key] for key in keys if key in self._modulations}
        if missing := [key for key in dict.fromkeys(keys) if key not in found]:
            times = [time for time, _ in missing]
            missing_K = torch.tensor(times, dtype=times_K.dtype).to(self.device, non_blocking=True)
            shares = missing_K.split(1) if self.device.type == "cpu" else (missing_K,)
            computed = [modulation for share in shares for modulation in self._modulate(share, updates).unbind()]
            found |= zip(missing, computed, strict=True)
        with self._lock:
            for key in keys:
                self._modulations[key] = found[key]
                self._modulations.move_to_end(key)
            while len(self._modulations) > max(1, MODULATION_CACHE_BYTES // found[keys[0]].nbytes):
                self._modulations.popitem(last=False)
        return tuple(found[key] for key in keys)

    def _modulate(self, times_K: Tensor, updates: ConditioningUpdates) -> Tensor:
        """Compute modulations, (K, M)."""
        with one_core(self.device):
            return modulate(self.transformer, times_K, updates)

    def rope(self, *, height_px: int, width_px: int, prompt_rows: int, has_reference: bool = False) -> Rope:
        """Return the rotations of the prompt's rows, the image's tokens, and those of a reference of the image's size."""
        key = (height_px, width_px, prompt_rows, has_reference)
        with self._lock:
            if key not in self._ropes:
                modalities = (latents.IMAGE, latents.REFERENCE) if has_reference else (latents.IMAGE,)
                pictures = [
                    latents.image_ids(height_px=height_px, width_px=width_px, max_tokens=prompt_rows, modality=modality)
                    for modality in modalities
                ]
                ids_T3 = torch.cat([latents.text_ids(prompt_rows), *pictures])
                self._ropes[key] = self._rotations(ids_T3.to(self.device))
                if len(self._ropes) > _MAX_ROPES:
                    self._ropes.popitem(last=False)
            self._ropes.move_to_end(key)
            return self._ropes[key]

    def _rotations(self, ids_T3: Tensor) -> Rope:
        cosines, sines = self.transformer.pos_embed(ids_T3)
        if self.compiled or ids_T3.device.type == "mps":
            return torch.stack([cosines, sines])
        return torch.complex(cosines[:, ::2].contiguous(), sines[:, ::2].contiguous())  # every number occurs twice

    @torch.no_grad()
    def __call__(
        self,
        latents_RNC: Tensor,
        context_RLD: Tensor,
        modulation_RM: Tensor,
        rope: Rope,
        updates: Updates | None = None,
    ) -> Tensor:
        """Predict velocities (R, N, C)."""
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
        with one_core(torch.device("cpu")):  # sums split over cores round differently, depending on the number of rows
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

        beside = updates.get(BESIDE_BLOCKS, _NO_UPDATES)
        image_RND, text_RLD = linear(model.x_embedder, latents_RNC, beside.get(IMAGE_EMBEDDER)), context_RLD
        for i, block in enumerate(model.transformer_blocks):
            changes = updates.get(f"transformer_blocks.{i}", _NO_UPDATES)
            image_modulation, text_modulation = take(DOUBLE_BLOCK_MODULATIONS), take(DOUBLE_BLOCK_MODULATIONS)
            text_RLD, image_RND = self._double(
                block, text_RLD, image_RND, image_modulation, text_modulation, rope, changes
            )
        tokens_RTD, prompt_rows = torch.cat([text_RLD, image_RND], dim=1), text_RLD.shape[1]
        last = len(model.single_transformer_blocks) - 1
        for i, block in enumerate(model.single_transformer_blocks):
            changes = updates.get(f"single_transformer_blocks.{i}", _NO_UPDATES)
            skip = prompt_rows if i == last else 0
            tokens_RTD = self._single(block, tokens_RTD, take(SINGLE_BLOCK_MODULATIONS), rope, changes, skip)
        scale, shift = take(OUTPUT_MODULATIONS).chunk(OUTPUT_MODULATIONS, dim=-1)
        return linear(model.proj_out, model.norm_out.norm(tokens_RTD) * (1 + scale) + shift, beside.get(OUTPUT))


def schedule(
    model: Base,
    forward: Forward,
    *,
    height_px: int,
    width_px: int,
    steps: int,
    strength: float = 1.0,
    updates: ConditioningUpdates = UNCHANGED,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return the noise levels (steps + 1,) in float32 on the CPU, and the modulations (M,) of each step.

    ``strength``: below 1, those of the last ``steps_kept`` steps.

    Modulations that ``forward`` has not cached are computed from most of the transformer's weights: done ahead of ``start``,
    they do not delay the steps of other images.
    """
    tokens = image_tokens(height_px=height_px, width_px=width_px)
    sigmas = flow.sigma_schedule(steps=steps, image_tokens=tokens, scheduler_config=model.scheduler_config)
    sigmas = sigmas[-1 - steps_kept(steps, strength) :]
    # The model is given t / 1000 in its own dtype, as the published pipeline gives it: bfloat16 rounds t first.
    return sigmas, forward.modulations((sigmas[:-1] * 1000).to(model.dtype) / 1000, updates)


def _rows_of(updates: Updates | None, first: int, end: int) -> Updates | None:
    """Return the updates of rows ``first`` to ``end``, numbered from ``first``."""
    if updates is None:
        return None
    return {
        block: {
            layer: [part for update in several if (part := update.within(first, end))]
            for layer, several in changes.items()
        }
        for block, changes in updates.items()
    }
