"""The pictures of each batch. Stateless: batch i follows from the seed, so that a resumed run continues where it was.

All pictures of a batch are of one bucket, and all or none are regularisation data, so that every process makes as many
forwards. An epoch goes through every bucket in a new order; an incomplete last batch is filled by repeating pictures of the
same bucket, so that no picture is left out.
"""

import itertools
from collections.abc import Sequence
from functools import lru_cache

from trainer.data.buckets import Bucket
from trainer.data.sample import Sample, groups_of
from trainer.randomness import python_rng


class Sampler:
    """Batches of indices into the samples."""

    def __init__(self, samples: Sequence[Sample], *, batch: int, seed: int) -> None:
        """Group the samples. ``batch`` is the number of pictures of a batch, over all processes."""
        self._batch = batch
        self._seed = seed
        self._groups = groups_of(samples)
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)
        self.batches_per_epoch = len(self._epoch(0))
        """Number of batches, which is the same for every epoch."""

    def batch(self, number: int) -> tuple[int, ...]:
        """Return batch ``number`` of the run, counted from 0."""
        epoch, index = divmod(number, self.batches_per_epoch)
        return self._epoch(epoch)[index]

    def _make_epoch(self, epoch: int) -> tuple[tuple[int, ...], ...]:
        buckets: dict[tuple[Bucket, bool], list[int]] = {}
        for place, (group, indices) in enumerate(self._groups.items()):
            drawn = python_rng(self._seed, "share", epoch, place).sample(indices, group.share(len(indices)))
            buckets.setdefault((group.bucket, group.is_prior), []).extend(drawn * (1 + group.repeats))
        batches: list[tuple[int, ...]] = []
        for place, indices in enumerate(buckets.values()):
            python_rng(self._seed, "order", epoch, place).shuffle(indices)
            endless = itertools.cycle(indices)
            count = -(-len(indices) // self._batch)
            batches.extend(tuple(itertools.islice(endless, self._batch)) for _ in range(count))
        python_rng(self._seed, "batches", epoch).shuffle(batches)
        return tuple(batches)
