"""The results that depend on the time or the prompt alone: an image's modulations and its prompt's projection.

They are computed before an image's steps, for one time or one prompt, so that adapters that change their layers cost no time
in a step, and other images cannot change a bit of them.

Shapes: K times, L prompt rows, D the inner width, J the text encoder's width, M numbers of modulation.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from diffusers import LongCatImageTransformer2DModel
from torch import Tensor, nn

from longcat.adapter.modules import PROMPT_EMBEDDER, depends_on_time
from longcat.sampling.blocks import linear
from longcat.sampling.updates.update import LinearUpdate

Layers = Mapping[str, Sequence[LinearUpdate]]
"""Updates by the layer's name, of one row."""


@dataclass(frozen=True)
class ConditioningUpdates:
    """The updates of one image's adapters to the layers of this file (``updates.conditioner`` makes them)."""

    key: Hashable
    """Equal for the same adapters at the same scales."""
    names: frozenset[str]
    """Names of the layers that are changed."""
    make: Callable[[], Layers]
    """Makes ``layers``: where results are cached, their updates are not needed."""

    @cached_property
    def layers(self) -> Layers:
        """The updates of these layers, made at the first use."""
        return self.make()

    @property
    def time_key(self) -> Hashable:
        """The key, or None if no layer that depends on the time is changed."""
        return self.key if any(map(depends_on_time, self.names)) else None


UNCHANGED = ConditioningUpdates(None, frozenset(), dict)


def project_prompt(
    transformer: LongCatImageTransformer2DModel, embeds_1LJ: Tensor, updates: ConditioningUpdates
) -> Tensor:
    """Project a prompt's embedding to the blocks' width, (1, L, D)."""
    return linear(transformer.context_embedder, embeds_1LJ, updates.layers.get(PROMPT_EMBEDDER))


def modulate(transformer: LongCatImageTransformer2DModel, times_K: Tensor, updates: ConditioningUpdates) -> Tensor:
    """Return the shifts, scales and gates of all blocks at K times, (K, M). ``times_K``: 0..1, in the model's dtype."""
    vectors_KD = F.silu(_embed_times(transformer, times_K, updates))
    parts = []
    for name, layer in _modulation_layers(transformer):
        changes = updates.layers.get(name)
        parts.append(layer(vectors_KD) if changes is None else linear(layer, vectors_KD[None], changes)[0])
    return torch.cat(parts, dim=-1)


def _modulation_layers(transformer: LongCatImageTransformer2DModel) -> list[tuple[str, nn.Module]]:
    """Return the layers in the order in which a forward takes their results."""
    return [
        *(
            (f"transformer_blocks.{i}.{norm}.linear", getattr(block, norm).linear)
            for i, block in enumerate(transformer.transformer_blocks)
            for norm in ("norm1", "norm1_context")
        ),
        *(
            (f"single_transformer_blocks.{i}.norm.linear", block.norm.linear)
            for i, block in enumerate(transformer.single_transformer_blocks)
        ),
        ("norm_out.linear", transformer.norm_out.linear),
    ]


def _embed_times(transformer: LongCatImageTransformer2DModel, times_K: Tensor, updates: ConditioningUpdates) -> Tensor:
    """Return the embeddings of times, (K, D)."""
    embedder = transformer.time_embed
    first, second = (updates.layers.get(f"time_embed.timestep_embedder.linear_{place}") for place in (1, 2))
    if first is None and second is None:
        embedded: Tensor = embedder(times_K * 1000, times_K.dtype)
        return embedded
    projected = embedder.time_proj(times_K * 1000).to(times_K.dtype)[None]
    layers = embedder.timestep_embedder
    return linear(layers.linear_2, layers.act(linear(layers.linear_1, projected, first)), second)[0]
