"""One forward of training: from a batch of cached latents and embeddings to its loss.

Flow matching as LongCat-Image is trained (``longcat.sampling.flow``): x = (1 - sigma) clean + sigma noise, the transformer
predicts noise - clean, and the loss is the mean square error in float32. A picture's random numbers follow from the seed and
from its place in the run.

Prior preservation (Ruiz et al., DreamBooth, section 3.2) with the base itself as the teacher, as SimpleTuner has it: the
target of regularisation pictures is the prediction of the same weights, at the same noise and time, with the adapter off.

A model that edits sees the reference beside the image, as it is served: its tokens are appended to the noise, with positions
of their own modality, and the loss is of the image's tokens alone.

Shapes: B batch, N image tokens, C = 64, L prompt rows, J the text encoder's width, T rows up to the first pad row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol, TypeVar

import torch
import torch.nn.functional as F
from diffusers import LongCatImageTransformer2DModel
from torch import Tensor, nn

from longcat.model.shape import LATENT_CHANNELS
from longcat.sampling import flow, latents
from longcat.sampling.encoding.files import prompt_rows
from trainer.data.buckets import Bucket
from trainer.data.captions.compose import compose_caption
from trainer.data.sample import Sample
from trainer.encode.cache import Cache
from trainer.encode.preparation import Encoders
from trainer.model.base import without_adapter
from trainer.randomness import derive, python_rng, torch_rng


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The inputs of one forward."""

    noisy_BNC: Tensor
    target_BNC: Tensor
    """The target of the prediction: the velocity, which ``with_prior`` replaces by the base's prediction."""
    sigma_B: Tensor
    embeds_BLJ: Tensor
    text_ids_L3: Tensor
    image_ids_N3: Tensor
    """Positions of the image's tokens, then of the reference's, if there is one."""
    seed: int
    """Seed of the random numbers inside the forward: the adapter's dropout."""
    is_prior: bool = False
    """True for regularisation pictures."""
    weights_BNC: Tensor | None = None
    """Weights of the squared errors, 0 to 1, by the pictures' masks; None is 1 everywhere."""
    reference_BNC: Tensor | None = None
    """Clean latents of the pictures that are edited; None for text-to-image."""


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """The options of batches, under their names in ``TrainConfig``."""

    seed: int
    caption_dropout_probability: float
    flow_schedule_shift: float | str
    masked_loss_probability: float


_Made = TypeVar("_Made")


class Objective(Protocol[_Made]):
    """The examples that a run learns from, in two parts: the device may compute while the next batch is made."""

    def batch(self, number: int, indices: Sequence[int], *, first: int) -> _Made:
        """Make batch ``number`` of these samples, in main memory: a dataclass of tensors and plain values.

        ``first`` is the first one's place in the batch of all processes.
        """

    def complete(self, transformer: LongCatImageTransformer2DModel, made: _Made) -> Batch:
        """Compute on the device what the batch needs of the model itself."""


class Batches:
    """Batches of pictures by their number in the run."""

    def __init__(
        self,
        settings: BatchSettings,
        samples: Sequence[Sample],
        encoders: Encoders,
        cache: Cache,
        scheduler_config: Mapping[str, Any],
    ) -> None:
        self._settings = settings
        self._samples = samples
        self._encoders = encoders
        self._cache = cache
        self._scheduler_config = scheduler_config
        self._edits = encoders.flavour.settings.edits
        self._ids = lru_cache(maxsize=64)(positions)
        self._latent_key = lru_cache(maxsize=None)(lambda index: encoders.latent_key(samples[index]))
        self._mask_key = lru_cache(maxsize=None)(lambda index: encoders.mask_key(samples[index]))
        self._embedding_key = lru_cache(maxsize=None)(
            lambda caption, index: encoders.embedding_key(caption, samples[index].reference)
        )
        self._prompt_length = lru_cache(maxsize=None)(lambda index: encoders.prompt_length(samples[index].reference))

    def batch(self, number: int, indices: Sequence[int], *, first: int) -> Batch:
        """Make batch ``number`` of these samples, in main memory.

        ``first`` is the first one's place in the batch of all processes.
        """
        seed, dtype = self._settings.seed, self._encoders.dtype
        size = self._samples[indices[0]].bucket
        places = range(first, first + len(indices))
        clean = torch.stack([self._latents(index) for index in indices]).float()
        embeds = torch.stack([self._embedding(i, number, p) for i, p in zip(indices, places, strict=True)])
        generators = [torch_rng(seed, "noise", number, place) for place in places]
        mu = self._mu(clean.shape[1])
        sigma = torch.cat([flow.training_sigmas(1, mu=mu, generator=generator) for generator in generators])
        noise = torch.stack([torch.randn(clean.shape[1:], generator=generator) for generator in generators])
        text_ids, image_ids = self._ids(size, prompt_rows=embeds.shape[1], has_reference=self._edits)
        return Batch(
            noisy_BNC=flow.add_noise(clean, noise, sigma).to(dtype),
            target_BNC=flow.velocity(clean, noise),
            weights_BNC=self._weights(indices, number, clean),
            reference_BNC=torch.stack([self._reference(index) for index in indices]) if self._edits else None,
            is_prior=self._samples[indices[0]].is_prior,
            sigma_B=sigma.to(dtype),
            embeds_BLJ=embeds,
            text_ids_L3=text_ids,
            image_ids_N3=image_ids,
            seed=derive(seed, "dropout", number, first),
        )

    def complete(self, transformer: LongCatImageTransformer2DModel, made: Batch) -> Batch:
        """Compute the targets of regularisation pictures."""
        return with_prior(transformer, made)

    def _latents(self, index: int) -> Tensor:
        return self._cache.require(self._latent_key(index), self._samples[index].key)

    def _reference(self, index: int) -> Tensor:
        reference = self._samples[index].reference
        assert reference is not None  # the configuration is checked: every picture of a model that edits has one
        return self._cache.require(self._encoders.reference_key(reference), reference.file.key)

    def _weights(self, indices: Sequence[int], number: int, clean_BNC: Tensor) -> Tensor | None:
        """Return the weights of the batch's latents; None if no picture has a mask, or none counts in this batch."""
        keys = [self._mask_key(index) for index in indices]
        if (
            not any(keys)
            or python_rng(self._settings.seed, "mask", number).random() >= self._settings.masked_loss_probability
        ):
            return None
        weights = torch.ones_like(clean_BNC)
        for row, (index, key) in enumerate(zip(indices, keys, strict=True)):
            if key is not None:
                weights[row] = mask_weights(self._cache.require(key, self._samples[index].key))[0]
        return weights

    def _embedding(self, index: int, number: int, place: int) -> Tensor:
        rng = python_rng(self._settings.seed, "caption", number, place)
        dropped = rng.random() < self._settings.caption_dropout_probability
        caption = "" if dropped else compose_caption(self._samples[index], rng)
        rows = self._cache.require(self._embedding_key(caption, index if self._edits else 0), caption)
        return prompt_rows(rows, self._prompt_length(index))

    def _mu(self, image_tokens: int) -> float:
        shift = self._settings.flow_schedule_shift
        if isinstance(shift, str):
            return flow.shift_mu(image_tokens, self._scheduler_config)
        return float(torch.tensor(shift).log())


def positions(size: Bucket, *, prompt_rows: int, has_reference: bool) -> tuple[Tensor, Tensor]:
    """Return the positions of a prompt's rows, (L, 3), and of the tokens of an image, and of its reference, (N, 3)."""
    modalities = (latents.IMAGE, latents.REFERENCE) if has_reference else (latents.IMAGE,)
    pictures = [
        latents.image_ids(height_px=size.height_px, width_px=size.width_px, max_tokens=prompt_rows, modality=modality)
        for modality in modalities
    ]
    return latents.text_ids(prompt_rows), torch.cat(pictures)


def mask_weights(mask_HW: Tensor) -> Tensor:
    """Return the weights of a picture's latents, (1, N, C) in 0 to 1, from its cached mask in uint8."""
    return latents.pack((mask_HW.float() / 255).expand(1, LATENT_CHANNELS, -1, -1))


def loss_of(transformer: nn.Module, batch: Batch) -> Tensor:
    """Return the batch's loss, 0-dim in float32.

    It is a mean over all latents, masked ones included: a picture counts by the share of it that its mask shows, as in
    SimpleTuner.
    """
    torch.manual_seed(batch.seed)
    predicted = _predict(transformer, batch)
    if batch.weights_BNC is None:
        return F.mse_loss(predicted, batch.target_BNC)
    return (F.mse_loss(predicted, batch.target_BNC, reduction="none") * batch.weights_BNC).mean()


@torch.no_grad()
def with_prior(transformer: LongCatImageTransformer2DModel, batch: Batch) -> Batch:
    """Return a batch of regularisation pictures with the base's own prediction as its target; another is unchanged."""
    if not batch.is_prior:
        return batch
    with without_adapter(transformer):
        return replace(batch, target_BNC=_predict(transformer, batch))


def _predict(transformer: nn.Module, batch: Batch) -> Tensor:
    ids = batch.text_ids_L3, batch.image_ids_N3
    return predict(transformer, batch.noisy_BNC, batch.sigma_B, batch.embeds_BLJ, ids, batch.reference_BNC)


def predict(
    transformer: nn.Module,
    noisy_BNC: Tensor,
    sigma_B: Tensor,
    embeds_BLJ: Tensor,
    ids: tuple[Tensor, Tensor],
    reference_BNC: Tensor | None = None,
) -> Tensor:
    """Return the predicted velocity, (B, N, C) in float32. ``ids``: positions of prompt rows and of all pictures' tokens.

    The base computes in its own type, to which the adapter's layers cast their float32 parameters. Under torch's autocast,
    layer norms on a GPU would give float32, and a torchao base then computes and keeps everything in float32.
    """
    text_ids_L3, image_ids_N3 = ids
    predicted: Tensor = transformer(
        hidden_states=noisy_BNC if reference_BNC is None else torch.cat([noisy_BNC, reference_BNC], dim=1),
        timestep=sigma_B,
        encoder_hidden_states=embeds_BLJ,
        txt_ids=text_ids_L3,
        img_ids=image_ids_N3,
        return_dict=False,
    )[0]
    return predicted[:, : noisy_BNC.shape[1]].float()
