"""Which pictures each batch holds. No state: batch i follows from the seed, so that a resumed run goes on where it was.

A batch holds pictures of one bucket. An epoch goes through every bucket in a new order; what does not fill a last batch is
filled by repeating pictures of the same bucket, so that none is ever left out.
"""

import itertools
from collections.abc import Sequence
from functools import lru_cache

from trainer.inventory import Sample
from trainer.randomness import python_rng


class Sampler:
    """Batches of indices into the samples."""

    def __init__(self, samples: Sequence[Sample], *, batch: int, seed: int) -> None:
        """``batch``: pictures a batch, over all processes."""
        self._batch = batch
        self._seed = seed
        groups: dict[tuple[object, ...], list[int]] = {}
        for index, sample in enumerate(samples):
            group = (sample.bucket, sample.dataset, sample.repeats, sample.probability)
            groups.setdefault(group, []).append(index)
        self._groups = groups
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)
        self.batches_per_epoch = len(self._epoch(0))
        """The same for every epoch."""

    def batch(self, number: int) -> tuple[int, ...]:
        """Batch ``number`` of the run, counted from 0."""
        epoch, index = divmod(number, self.batches_per_epoch)
        return self._epoch(epoch)[index]

    def _make_epoch(self, epoch: int) -> tuple[tuple[int, ...], ...]:
        buckets: dict[object, list[int]] = {}
        for place, ((bucket, _, repeats, probability), indices) in enumerate(self._groups.items()):
            share = max(1, round(len(indices) * float(probability)))  # type: ignore[arg-type]
            drawn = python_rng(self._seed, "share", epoch, place).sample(indices, share)
            buckets.setdefault(bucket, []).extend(drawn * (1 + int(repeats)))  # type: ignore[call-overload]
        batches: list[tuple[int, ...]] = []
        for place, indices in enumerate(buckets.values()):
            python_rng(self._seed, "order", epoch, place).shuffle(indices)
            endless = itertools.cycle(indices)
            count = -(-len(indices) // self._batch)
            batches.extend(tuple(itertools.islice(endless, self._batch)) for _ in range(count))
        python_rng(self._seed, "batches", epoch).shuffle(batches)
        return tuple(batches)
