"""A sample: one picture of the training data, with its captions and its bucket. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from trainer.config.dataset_options import DatasetConfig
from trainer.data.buckets import Bucket, Crop


class SampleGroup(NamedTuple):
    """Samples of one bucket and dataset, which are shown equally often."""

    bucket: Bucket
    dataset: str
    repeats: int
    probability: float
    is_prior: bool

    def share(self, count: int) -> int:
        """Return how many of ``count`` samples an epoch shows, each ``1 + repeats`` times: one at least."""
        return max(1, round(count * self.probability))


@dataclass(frozen=True, kw_only=True)
class LinkedPicture:
    """A picture of another dataset that belongs to a sample: its mask, or the picture that it is edited from."""

    key: str
    """The file, relative to its dataset."""
    digest: str
    """SHA-256 of the file's bytes, in hex."""
    width_px: int
    """Width of the upright picture."""
    height_px: int
    config: DatasetConfig

    @property
    def dataset(self) -> str:
        """The dataset's id."""
        return self.config.id


@dataclass(frozen=True, kw_only=True)
class PairReference:
    """The picture that an image is edited from, at the size of the image."""

    file: LinkedPicture
    bucket: Bucket
    """The size of the image."""
    crop: Crop | None = None
    """The crop of the image that it is trained with; None: fitted as the service fits the picture of a request."""

    @property
    def identity(self) -> str:
        """Everything that its pixels follow from."""
        return f"{self.file.digest} {self.bucket} {self.crop} {self.file.config.alpha_colour}"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A picture with its captions and its crop to its bucket's size."""

    dataset: str
    """The dataset's id."""
    key: str
    """The file, relative to its dataset."""
    digest: str
    """SHA-256 of the file's bytes, in hex."""
    captions: tuple[str, ...]
    """Captions, of which one is drawn each time; the instance prompt is included."""
    kinds: tuple[str, ...] = ()
    """The kind of each caption in ``caption_shares``; empty if all captions are drawn alike."""
    width_px: int
    """Width of the upright picture."""
    height_px: int
    bucket: Bucket
    crop: Crop
    repeats: int
    """Times beyond the first that an epoch shows it."""
    probability: float
    """Probability that an epoch shows it."""
    config: DatasetConfig
    mask: LinkedPicture | None = None
    """Weighs the loss: a picture in greys."""
    reference: PairReference | None = None
    """The picture that it is edited from; None for text-to-image."""

    @property
    def is_prior(self) -> bool:
        """True if its target is the base's own prediction."""
        return self.config.is_regularisation_data

    @property
    def enlarged(self) -> float:
        """Factor by which its sides become longer; below 1, shorter."""
        return max(self.crop.resized[0] / self.width_px, self.crop.resized[1] / self.height_px)

    @property
    def stretched(self) -> float:
        """Factor by which its aspect ratio changes; 1 is unchanged."""
        across, down = self.crop.resized[0] / self.width_px, self.crop.resized[1] / self.height_px
        return max(across, down) / min(across, down)


def groups_of(samples: Sequence[Sample]) -> dict[SampleGroup, list[int]]:
    """Return the indices of samples by the group of which an epoch shows a share."""
    groups: dict[SampleGroup, list[int]] = {}
    for index, sample in enumerate(samples):
        group = SampleGroup(sample.bucket, sample.dataset, sample.repeats, sample.probability, sample.is_prior)
        groups.setdefault(group, []).append(index)
    return groups
