"""The teacher's trajectories: the base with guidance from noise to a picture, solved once and cached.

A trajectory is kept at the ends of the student's windows. The times of K student steps are those of every (S / K)-th of S
teacher steps: both schedules shift the same even spacing.

Shapes: B batch, N image tokens, C = 64, L prompt rows, J the text encoder's width, K windows, S steps of the teacher.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers import LongCatImageTransformer2DModel
from torch import Tensor

from longcat.model.shape import image_tokens
from longcat.sampling import flow, latents
from longcat.sampling.encoding.files import key_of, prompt_rows
from trainer.config.distillation import DistillationConfig
from trainer.data.buckets import Bucket
from trainer.data.sample import Sample
from trainer.distill.prompts import noise_seed
from trainer.encode.cache import Cache, fill
from trainer.encode.preparation import Encoders, OnDone
from trainer.loop.step import predict
from trainer.model.base import without_adapter


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """The settings of trajectories, which are part of their cache keys."""

    windows: int
    """Steps of the student."""
    steps: int
    """Steps of the teacher, a multiple of ``windows``."""
    guidance_scale: float
    precision: str
    """Precision of the base."""

    @classmethod
    def of(cls, settings: DistillationConfig, encoders: Encoders, *, precision: str) -> "Teacher":
        """Return the teacher with the model's defaults in place of settings that are not given."""
        defaults, guidance = encoders.flavour.settings, settings.teacher_guidance
        return cls(
            windows=settings.steps,
            steps=settings.solver_steps(defaults.default_steps),
            guidance_scale=defaults.default_guidance_scale if guidance is None else guidance,
            precision=precision,
        )


class Trajectories:
    """The trajectories of samples, from the cache."""

    def __init__(
        self, teacher: Teacher, samples: Sequence[Sample], encoders: Encoders, cache: Cache, config: Mapping[str, Any]
    ) -> None:
        """``config``: of the scheduler, which gives the noise levels."""
        self._teacher = teacher
        self._samples = samples
        self._encoders = encoders
        self._cache = cache
        self._scheduler_config = config
        self._length = encoders.flavour.settings.max_prompt_tokens
        self._keys = [
            key_of("trajectory", encoders.embedding_key(sample.captions[0]), noise_seed(sample), sample.bucket, teacher,
                   encoders.flavour.hash, encoders.dtype, 1)
            for sample in samples
        ]  # fmt: skip

    def points(self, index: int) -> Tensor:
        """Return a sample's trajectory, (K + 1, N, C): its noise, then the latents at the end of each window."""
        return self._cache.require(self._keys[index], self._samples[index].key)

    def embedding(self, index: int) -> Tensor:
        """Return a sample's prompt, (L, J)."""
        return self._embedding(self._samples[index].captions[0])

    def _embedding(self, prompt: str) -> Tensor:
        return prompt_rows(self._cache.require(self._encoders.embedding_key(prompt), prompt), self._length)

    def sigmas(self, bucket: Bucket, *, steps: int | None = None) -> Tensor:
        """Return the noise levels of that many steps, the student's by default: from 1 to 0, in float32."""
        tokens = image_tokens(height_px=bucket.height_px, width_px=bucket.width_px)
        return flow.sigma_schedule(
            steps=steps or self._teacher.windows, image_tokens=tokens, scheduler_config=self._scheduler_config
        )

    def ids(self, bucket: Bucket) -> tuple[Tensor, Tensor]:
        """Return the positions of prompt rows and image tokens."""
        length = self._length
        image = latents.image_ids(height_px=bucket.height_px, width_px=bucket.width_px, max_tokens=length)
        return latents.text_ids(length), image

    def solve(
        self, transformer: LongCatImageTransformer2DModel, on_done: OnDone, *, share: int = 0, shares: int = 1
    ) -> int:
        """Cache every trajectory; return the number that was missing. Process every ``shares``-th batch.

        ``transformer`` is on the device; an adapter in it is disabled.
        """
        groups: dict[Bucket, list[int]] = {}
        for index, sample in enumerate(self._samples):
            groups.setdefault(sample.bucket, []).append(index)
        size = self._encoders.vae_batch
        batches = [group[i : i + size] for group in groups.values() for i in range(0, len(group), size)]
        work = [
            (tuple(self._keys[index] for index in batch), partial(self._solved, transformer, batch))
            for batch in batches[share::shares]
        ]
        with without_adapter(transformer):
            return fill(self._cache, work, partial(on_done, "trajectories"))

    @torch.no_grad()
    def _solved(self, transformer: LongCatImageTransformer2DModel, indices: Sequence[int]) -> Iterator[Tensor]:
        device, dtype, teacher = self._encoders.device, self._encoders.dtype, self._teacher
        bucket, count = self._samples[indices[0]].bucket, len(indices)
        sigmas = self._sigmas_on(bucket, teacher.steps, device)
        ids = tuple(part.to(device) for part in self.ids(bucket))
        prompts = torch.stack([self.embedding(index) for index in indices])
        if teacher.guidance_scale > 1:
            prompts = torch.cat([prompts, self._embedding("").expand(count, -1, -1)])
        embeds, rows = prompts.to(device), len(prompts)
        size = {"height_px": bucket.height_px, "width_px": bucket.width_px}
        noise = [latents.seeded_noise(seed=noise_seed(self._samples[index]), **size) for index in indices]
        points = [torch.cat(noise).to(device)]
        x = points[0]
        for step in range(teacher.steps):
            inputs = x.repeat(rows // count, 1, 1).to(dtype)
            velocity = predict(transformer, inputs, model_times(sigmas[step], rows, dtype), embeds, (ids[0], ids[1]))
            if rows > count:
                velocity = flow.guide(*velocity.chunk(2), scale=teacher.guidance_scale, renorm=True)
            x = flow.euler_step(x, velocity, sigmas[step], sigmas[step + 1])
            if (step + 1) % (teacher.steps // teacher.windows) == 0:
                points.append(x)
        return iter(torch.stack(points, dim=1).to(dtype).unbind())

    def _sigmas_on(self, bucket: Bucket, steps: int, device: torch.device) -> Tensor:
        return self.sigmas(bucket, steps=steps).to(device)


def model_times(sigma: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    """Return a noise level as the model is given it in sampling, (rows,): the time of 0 to 1000 is rounded first."""
    return ((sigma * 1000).to(dtype) / 1000).expand(rows)
