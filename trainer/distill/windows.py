"""The student's examples: each of its K steps is to cross a window of the teacher's trajectory in one straight line.

The trajectory is split at the student's own noise levels s_0 = 1 > ... > s_K = 0. From a point x at s_k the velocity that
reaches the teacher's point at s_(k+1) is

    v = (teacher(s_(k+1)) - x) / (s_(k+1) - s_k),

and the loss is the mean square error of the predicted velocity. With x = teacher(s_k) this is piecewise rectified flow
(Yan et al. 2024, PeRFlow, arXiv 2405.07510, equation 5) at the start of each window, the one place where a sampler of K
steps evaluates it; the guided velocity of the teacher is distilled at the same time (Meng et al. 2023, On Distillation of
Guided Diffusion Models, arXiv 2210.03142, section 3). The student then starts a window where its own steps have led, not
on the trajectory. ``on_policy`` is the share of examples for which x is the student's own point: as in DAgger (Ross et
al. 2011, arXiv 1011.0686, algorithm 3.1), the target leads back to the teacher's trajectory of the same noise.

Shapes: B batch, N image tokens, C = 64, L prompt rows, J the text encoder's width, K windows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import LongCatImageTransformer2DModel
from torch import Tensor

from trainer.data.sample import Sample
from trainer.distill.trajectories import Trajectories, model_times
from trainer.loop.step import Batch, predict
from trainer.randomness import derive, python_rng


@dataclass(frozen=True, kw_only=True)
class WindowBatch:
    """Examples before the student's own points are known."""

    start_BNC: Tensor
    """The teacher's point at the start of the window; the noise for an example that is the student's own."""
    goal_BNC: Tensor
    """The teacher's point at the end of the window."""
    window_B: Tensor
    """Numbers of the windows, from 0."""
    is_own_B: Tensor
    """True where the student's own steps lead to the start of the window."""
    sigmas_K: Tensor
    """Noise levels of the windows' ends, (K + 1,)."""
    embeds_BLJ: Tensor
    text_ids_L3: Tensor
    image_ids_N3: Tensor
    seed: int
    """Seed of the random numbers inside the forward: the adapter's dropout."""


class Windows:
    """Examples by their batch's number in the run (``trainer.loop.step.Objective``)."""

    def __init__(
        self, trajectories: Trajectories, samples: Sequence[Sample], *, on_policy: float, seed: int, dtype: torch.dtype
    ) -> None:
        """``on_policy``: share of examples that start at the student's own points. ``dtype``: of the base's computation."""
        self._trajectories = trajectories
        self._samples = samples
        self._on_policy = on_policy
        self._seed = seed
        self._dtype = dtype

    def batch(self, number: int, indices: Sequence[int], *, first: int) -> WindowBatch:
        """Make batch ``number`` of these samples, in main memory; each sample is an example of one window.

        ``first`` is the first one's place in the batch of all processes.
        """
        bucket = self._samples[indices[0]].bucket
        sigmas = self._trajectories.sigmas(bucket)
        starts, goals, windows, own = [], [], [], []
        for place, index in enumerate(indices, first):
            rng = python_rng(self._seed, "window", number, place)
            points, window = self._trajectories.points(index).float(), rng.randrange(len(sigmas) - 1)
            is_own = window > 0 and rng.random() < self._on_policy
            starts.append(points[0 if is_own else window])
            goals.append(points[window + 1])
            windows.append(window)
            own.append(is_own)
        text_ids, image_ids = self._trajectories.ids(bucket)
        return WindowBatch(
            start_BNC=torch.stack(starts),
            goal_BNC=torch.stack(goals),
            window_B=torch.tensor(windows),
            is_own_B=torch.tensor(own),
            sigmas_K=sigmas,
            embeds_BLJ=torch.stack([self._trajectories.embedding(index) for index in indices]),
            text_ids_L3=text_ids,
            image_ids_N3=image_ids,
            seed=derive(self._seed, "dropout", number, first),
        )

    def complete(self, transformer: LongCatImageTransformer2DModel, made: WindowBatch) -> Batch:
        """Return the examples with their targets; the student first takes the steps before its own examples."""
        start_BNC = self._rolled_out(transformer, made)
        sigma_B, next_B = made.sigmas_K[made.window_B], made.sigmas_K[made.window_B + 1]
        return Batch(
            noisy_BNC=start_BNC.to(self._dtype),
            target_BNC=(made.goal_BNC - start_BNC) / (next_B - sigma_B)[:, None, None],
            sigma_B=model_times(sigma_B, len(sigma_B), self._dtype),
            embeds_BLJ=made.embeds_BLJ,
            text_ids_L3=made.text_ids_L3,
            image_ids_N3=made.image_ids_N3,
            seed=made.seed,
        )

    @torch.no_grad()
    def _rolled_out(self, transformer: LongCatImageTransformer2DModel, made: WindowBatch) -> Tensor:
        """Return the examples' starts, (B, N, C) in float32."""
        points_BNC, sigmas, ids = made.start_BNC.clone(), made.sigmas_K, (made.text_ids_L3, made.image_ids_N3)
        was_training = transformer.training
        transformer.eval()
        for step in range(len(sigmas) - 2):
            rows = (made.is_own_B & (made.window_B > step)).nonzero()[:, 0]
            if not len(rows):
                break
            times = model_times(sigmas[step], len(rows), self._dtype)
            velocity = predict(transformer, points_BNC[rows].to(self._dtype), times, made.embeds_BLJ[rows], ids)
            points_BNC[rows] += (sigmas[step + 1] - sigmas[step]) * velocity
        transformer.train(was_training)
        return points_BNC
