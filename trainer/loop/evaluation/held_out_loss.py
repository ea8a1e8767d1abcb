"""The loss on held-out pictures at fixed noise, as training computes it, without dropout.

Noise follows from the picture's content, noise levels from the picture's size: no option of a run changes either, so that
losses can be compared from step to step and from run to run. On a CPU they are the same bits every time.

Shapes: N image tokens, C = 64, L prompt rows, J the text encoder's width.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from statistics import NormalDist
from typing import Any

import torch
from diffusers import LongCatImageTransformer2DModel
from torch import Tensor

from longcat.model.shape import TOKEN_PX
from longcat.sampling import flow
from longcat.sampling.encoding.files import prompt_rows
from trainer.encode.cache import Cache
from trainer.encode.preparation import Encoders
from trainer.loop.distributed import ProcessGroup
from trainer.loop.evaluation.probes import Probe
from trainer.loop.step import Batch, loss_of, mask_weights, positions
from trainer.model.base import without_adapter
from trainer.model.lora import ADAPTER, lora_layers
from trainer.model.lycoris import lycoris_layers
from trainer.randomness import torch_rng
from trainer.record.report_card import Losses, ProbeRecord


class HeldOutLoss:
    """The probes' losses with a transformer's present adapter. Processes share the probes."""

    def __init__(
        self,
        probes: Sequence[Probe],
        encoders: Encoders,
        cache: Cache,
        transformer: LongCatImageTransformer2DModel,
        process_group: ProcessGroup,
        *,
        scheduler_config: Mapping[str, Any],
    ) -> None:
        self._probes = probes
        self._encoders = encoders
        self._cache = cache
        self._transformer = transformer
        self._process_group = process_group
        self._scheduler_config = scheduler_config

    @cached_property
    def records(self) -> tuple[ProbeRecord, ...]:
        """The probes in the form of a run's record."""
        return tuple(
            ProbeRecord(
                picture=f"{probe.sample.dataset}/{probe.sample.key}",
                language=probe.language,
                sigma=round(self._sigma(probe), 4),
                band=probe.band,
            )
            for probe in self._probes
        )

    @torch.no_grad()
    def losses(self, *, strength: float = 1.0, first: int | None = None) -> Losses:
        """Return the losses of the probes, or of the ``first`` ones, with the adapter at a strength; 0 is the base.

        Every process has to call this, and all of them make the same number of forwards: a sharded base needs that.
        """
        chosen, group = self._probes[:first], self._process_group
        found = torch.zeros(len(chosen), device=self._encoders.device)
        was_training = self._transformer.training
        self._transformer.eval()
        with at_strength(self._transformer, strength):
            for start in range(0, len(chosen), group.size):
                place = start + group.rank
                loss = loss_of(self._transformer, self._batch(chosen[place % len(chosen)]))
                if place < len(chosen):
                    found[place] = loss
        self._transformer.train(was_training)
        return tuple(group.sum(found).tolist())

    def _batch(self, probe: Probe) -> Batch:
        device, dtype = self._encoders.device, self._encoders.dtype
        sample, reference = probe.sample, self._reference(probe)
        length = self._encoders.prompt_length(sample.reference)
        clean_1NC = self._cache.require(self._encoders.latent_key(sample), sample.key)[None].float()
        key = self._encoders.embedding_key(probe.caption, sample.reference)
        embeds_LJ = prompt_rows(self._cache.require(key, probe.caption), length)
        generator = torch_rng("held out", sample.digest, f"{probe.quantile:.6f}")
        noise_1NC = torch.randn(clean_1NC.shape, generator=generator)
        sigma = torch.tensor([self._sigma(probe)])
        mask = self._encoders.mask_key(sample)
        weights = None if mask is None else mask_weights(self._cache.require(mask, sample.key)).to(device)
        text_ids, image_ids = positions(sample.bucket, prompt_rows=length, has_reference=reference is not None)
        return Batch(
            noisy_BNC=flow.add_noise(clean_1NC, noise_1NC, sigma).to(device, dtype),
            target_BNC=flow.velocity(clean_1NC, noise_1NC).to(device),
            sigma_B=sigma.to(device, dtype),
            embeds_BLJ=embeds_LJ[None].to(device),
            text_ids_L3=text_ids.to(device),
            image_ids_N3=image_ids.to(device),
            seed=0,
            weights_BNC=weights,
            reference_BNC=None if reference is None else reference.to(device),
        )

    def _reference(self, probe: Probe) -> Tensor | None:
        """Return the latents of the picture that a probe's is edited from, (1, N, C)."""
        if (reference := probe.sample.reference) is None:
            return None
        return self._cache.require(self._encoders.reference_key(reference), reference.file.key)[None]

    def _sigma(self, probe: Probe) -> float:
        """Return the noise level at the probe's quantile, with the shift that the model itself has at the picture's size."""
        mu = flow.shift_mu(probe.sample.bucket.area_px // TOKEN_PX**2, self._scheduler_config)
        return float(torch.sigmoid(torch.tensor(NormalDist(mu).inv_cdf(probe.quantile), dtype=torch.float64)))


@contextmanager
def at_strength(transformer: LongCatImageTransformer2DModel, strength: float) -> Iterator[None]:
    """Scale the adapter as the service does at a request's scale; 0 is the base."""
    if strength == 0:
        with without_adapter(transformer):
            yield
        return
    loras = [(layer, layer.scaling[ADAPTER]) for _, layer in lora_layers(transformer)]
    lycoris = [(layer, layer.scale) for _, layer in lycoris_layers(transformer)]
    for lora, scale in loras:
        lora.scaling[ADAPTER] = scale * strength
    for layer, scale in lycoris:
        layer.scale = scale * strength
    try:
        yield
    finally:
        for lora, scale in loras:
            lora.scaling[ADAPTER] = scale
        for layer, scale in lycoris:
            layer.scale = scale
