"""The training picture that a generated picture is nearest to, to find copies: pictures that the adapter has memorised.

Pictures are compared as thumbnails of 32 x 32 px, which the encoding of pictures leaves in the cache. The distance is
sqrt(1 - c), with c the largest correlation of two thumbnails over shifts of up to 4 px, an eighth of a side: brightness,
contrast, noise, blur and small shifts hardly change it. How near is a copy follows from the training set, as in Carlini et
al. 2023, "Extracting Training Data from Diffusion Models", section 5: from the distances of its pictures to their own
nearest neighbours. The VAE's latents do not work here: a shift by less than a latent changes all of them.

Shapes: K pictures, S px of a thumbnail's side, C = 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer.data.held_out import in_order
from trainer.data.sample import Sample
from trainer.encode.cache import Cache
from trainer.encode.preparation import THUMBNAIL_PX, Encoders, thumbnail_of

_SHIFT_PX = THUMBNAIL_PX // 8
_QUERIES, _NEIGHBOURS = 64, 1024
"""Most pictures whose nearest neighbours are looked for, among at most how many: enough for a median."""
_SHARE = 0.5
"""A copy is nearer than this share of the median distance of training pictures to their nearest neighbours ..."""
_SURELY, _HARDLY = 0.1, 0.35
"""... but any picture is a copy below the first of these, and none above the second: correlations of 0.99 and 0.88."""
_UNKNOWN = 0.5
"""The median distance where there is a single training picture: about that of ``examples/ink``."""


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """The training picture that a picture is nearest to."""

    sample: Sample
    distance: float
    """0 for equal pictures, 1 for pictures that have nothing in common."""
    share: float
    """The distance, divided by the median distance of training pictures to their nearest neighbours."""
    is_copy: bool


class NearestPictures:
    """A search among the training pictures. Thumbnails are read when it is first used."""

    def __init__(self, samples: Sequence[Sample], encoders: Encoders, cache: Cache) -> None:
        one_each = {sample.digest: sample for sample in samples if not sample.is_prior}
        self._samples = in_order(tuple(one_each.values()))
        self._encoders = encoders
        self._cache = cache
        self._thumbnails_KSSC: np.ndarray | None = None
        self._median = _UNKNOWN

    def of(self, pixels_HWC: np.ndarray) -> Nearest:
        """Return the training picture that a picture is nearest to."""
        thumbnails_KSSC = self._read()
        distances = distances_of(thumbnail_of(pixels_HWC)[None], thumbnails_KSSC)[0]
        place = int(distances.argmin())
        distance = float(distances[place])
        limit = min(max(_SHARE * self._median, _SURELY), _HARDLY)
        share = distance / self._median if self._median else 0.0
        return Nearest(sample=self._samples[place], distance=distance, share=share, is_copy=distance < limit)

    def _read(self) -> np.ndarray:
        if self._thumbnails_KSSC is None:
            self._thumbnails_KSSC = np.stack(
                [self._encoders.thumbnail(self._cache, sample).numpy() for sample in self._samples]
            )
            if len(self._samples) > 1:
                queries, others = self._thumbnails_KSSC[:_QUERIES], self._thumbnails_KSSC[:_NEIGHBOURS]
                distances = distances_of(queries, others)
                np.fill_diagonal(distances, np.inf)
                self._median = float(np.median(distances.min(axis=1)))
        return self._thumbnails_KSSC


def distances_of(a_KSSC: np.ndarray, b_KSSC: np.ndarray) -> np.ndarray:
    """Return the distances of each picture of ``a`` to each of ``b``, (K of a, K of b): the smallest over all shifts."""
    correlations = np.full((len(a_KSSC), len(b_KSSC)), -1.0, dtype=np.float32)
    shifts = range(-_SHIFT_PX, _SHIFT_PX + 1)
    for down in shifts:
        for right in shifts:
            a = _normalised(
                a_KSSC[:, max(0, down) : THUMBNAIL_PX + min(0, down), max(0, right) : THUMBNAIL_PX + min(0, right)]
            )
            b = _normalised(
                b_KSSC[:, max(0, -down) : THUMBNAIL_PX + min(0, -down), max(0, -right) : THUMBNAIL_PX + min(0, -right)]
            )
            np.maximum(correlations, a @ b.T, out=correlations)
    return np.sqrt(np.clip(1 - correlations, 0, 1))


def _normalised(thumbnails_KSSC: np.ndarray) -> np.ndarray:
    """Return the thumbnails as vectors of mean 0 and length 1; pictures of one colour as zeros."""
    flat = thumbnails_KSSC.reshape(len(thumbnails_KSSC), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    flat /= np.maximum(length, 1e-3)
    return flat
