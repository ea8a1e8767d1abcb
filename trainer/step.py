"""One forward of training: a batch of cached latents and embeddings to its loss.

Flow matching as LongCat-Image is trained (``longcat.flow``): x = (1 - sigma) clean + sigma noise, the transformer predicts
noise - clean, the loss is the mean square in float32. Every picture's draws follow from the seed and its place in the run.

Shapes: B batch, N image tokens, C = 64, L prompt rows, J the text encoder's width, T rows up to the first pad row.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longcat import flow, latents
from longcat.errors import DataError
from trainer.cache import Cache
from trainer.captions import compose_caption
from trainer.config import TrainConfig
from trainer.inventory import Sample
from trainer.preparation import Encoders, prompt_rows
from trainer.randomness import derive, python_rng, torch_rng


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one forward needs, on the device."""

    noisy_BNC: Tensor
    velocity_BNC: Tensor
    """What is to be predicted."""
    sigma_B: Tensor
    embeds_BLJ: Tensor
    text_ids_L3: Tensor
    image_ids_N3: Tensor
    seed: int
    """Of what the forward itself draws: the adapter's dropout."""


class Batches:
    """Batches by their number in the run."""

    def __init__(
        self,
        config: TrainConfig,
        samples: Sequence[Sample],
        encoders: Encoders,
        cache: Cache,
        scheduler_config: Mapping[str, Any],
    ) -> None:
        self._config = config
        self._samples = samples
        self._encoders = encoders
        self._cache = cache
        self._scheduler_config = scheduler_config
        self._length = encoders.flavour.settings.max_prompt_tokens
        self._ids = lru_cache(maxsize=64)(self._make_ids)
        self._latent_key = lru_cache(maxsize=None)(lambda index: encoders.latent_key(samples[index]))
        self._embedding_key = lru_cache(maxsize=None)(encoders.embedding_key)

    def batch(self, number: int, indices: Sequence[int], *, first: int) -> Batch:
        """Batch ``number``: these samples, the first of which is at place ``first`` of the whole batch of all processes."""
        config, device = self._config, self._encoders.device
        size = self._samples[indices[0]].bucket
        places = range(first, first + len(indices))
        clean = torch.stack([self._latents(index) for index in indices]).float()
        embeds = torch.stack([self._embedding(i, number, p) for i, p in zip(indices, places, strict=True)])
        draws = [torch_rng(config.seed, "noise", number, place) for place in places]
        mu = self._mu(clean.shape[1])
        sigma = torch.cat([flow.training_sigmas(1, mu=mu, generator=draw) for draw in draws])
        noise = torch.stack([torch.randn(clean.shape[1:], generator=draw) for draw in draws])
        text_ids, image_ids = self._ids(size.height_px, size.width_px)
        return Batch(
            noisy_BNC=flow.add_noise(clean, noise, sigma).to(device, self._encoders.dtype),
            velocity_BNC=flow.velocity(clean, noise).to(device),
            sigma_B=sigma.to(device, self._encoders.dtype),
            embeds_BLJ=embeds.to(device),
            text_ids_L3=text_ids,
            image_ids_N3=image_ids,
            seed=derive(config.seed, "dropout", number, first),
        )

    def _latents(self, index: int) -> Tensor:
        return self._cached(self._latent_key(index), self._samples[index].key)

    def _embedding(self, index: int, number: int, place: int) -> Tensor:
        rng = python_rng(self._config.seed, "caption", number, place)
        dropped = rng.random() < self._config.caption_dropout_probability
        caption = "" if dropped else compose_caption(self._samples[index], rng)
        return prompt_rows(self._cached(self._embedding_key(caption), caption), self._length)

    def _cached(self, key: str, what: str) -> Tensor:
        found = self._cache.read(key)
        if found is None:
            raise DataError(
                f"cache {self._cache.folder}: the entry of {what!r} is gone or damaged since the run began; start again, "
                "and it is made anew"
            )
        return found

    def _mu(self, image_tokens: int) -> float:
        shift = self._config.flow_schedule_shift
        if isinstance(shift, str):
            return flow.shift_mu(image_tokens, self._scheduler_config)
        return float(torch.tensor(shift).log())

    def _make_ids(self, height_px: int, width_px: int) -> tuple[Tensor, Tensor]:
        image = latents.image_ids(height_px=height_px, width_px=width_px, max_tokens=self._length)
        return latents.text_ids(self._length).to(self._encoders.device), image.to(self._encoders.device)


def loss_of(transformer: nn.Module, batch: Batch, *, dtype: torch.dtype) -> Tensor:
    """The batch's loss, 0-dim in float32."""
    torch.manual_seed(batch.seed)
    with _autocast(batch.noisy_BNC.device, dtype):
        predicted = transformer(
            hidden_states=batch.noisy_BNC,
            timestep=batch.sigma_B,
            encoder_hidden_states=batch.embeds_BLJ,
            txt_ids=batch.text_ids_L3,
            img_ids=batch.image_ids_N3,
            return_dict=False,
        )[0]
    return F.mse_loss(predicted.float(), batch.velocity_BNC)


def _autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[None]:
    """The adapter is in float32; what it computes is in the base's type."""
    return nullcontext() if dtype is torch.float32 else torch.autocast(device.type, dtype)
