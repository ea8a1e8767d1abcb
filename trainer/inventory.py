"""What a scan of the training data found: samples, what was dropped and why, warnings. No torch."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from trainer.buckets import Bucket, Crop
from trainer.captions import detect_language
from trainer.dataset_config import DatasetConfig


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A picture with its captions, and how it is brought to its bucket."""

    dataset: str
    """The dataset's id."""
    key: str
    """The file, relative to its dataset."""
    digest: str
    """SHA-256 of the file's bytes, in hex."""
    captions: tuple[str, ...]
    """Of which one is drawn each time; the instance prompt has been applied."""
    width_px: int
    """Of the picture, the right way up."""
    height_px: int
    bucket: Bucket
    crop: Crop
    repeats: int
    """How many times more than once it is seen in an epoch."""
    probability: float
    """With which it is seen in an epoch."""
    config: DatasetConfig

    @property
    def enlarged(self) -> float:
        """How many times longer its sides become; under 1, shorter."""
        return max(self.crop.resized[0] / self.width_px, self.crop.resized[1] / self.height_px)

    @property
    def stretched(self) -> float:
        """By how much one side becomes longer than the other would ask for; 1 is not at all."""
        across, down = self.crop.resized[0] / self.width_px, self.crop.resized[1] / self.height_px
        return max(across, down) / min(across, down)


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """Something that is not used."""

    dataset: str
    key: str
    reason: str
    """Reads on from the key: ``is empty``."""


@dataclass(frozen=True, kw_only=True)
class Looked:
    """Where a dataset was looked for, and what was there."""

    dataset: str
    uri: str
    endings: Mapping[str, int]
    """Files by their endings, in lower case."""

    def __str__(self) -> str:
        kinds = sorted(self.endings.items(), key=lambda item: (-item[1], item[0]))
        files = ", ".join(f"{count} {ending or 'without ending'}" for ending, count in kinds) or "nothing"
        return f"dataset {self.dataset!r} at {self.uri} holds {files}"


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """The training data."""

    samples: tuple[Sample, ...]
    """In the datasets' order, then in the keys'."""
    dropped: tuple[Dropped, ...]
    warnings: tuple[str, ...]
    trigger_words: tuple[str, ...]
    looked: tuple[Looked, ...] = field(default=())

    @cached_property
    def hash(self) -> str:
        """SHA-256 of all that decides what is learnt: pictures, captions, buckets, policies. Names and places do not."""
        lines = sorted(json.dumps(_identity(sample), sort_keys=True) for sample in self.samples)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @cached_property
    def languages(self) -> dict[str, int]:
        """Captions by language: zh, en, other."""
        found = Counter(detect_language(caption) for sample in self.samples for caption in sample.captions)
        return {"zh": found["zh"], "en": found["en"], "other": found["other"]}

    @cached_property
    def buckets(self) -> Counter[Bucket]:
        """Pictures by bucket, each once."""
        return Counter(sample.bucket for sample in self.samples)

    @property
    def pictures_an_epoch(self) -> int:
        """Pictures that an epoch shows, with repeats and probabilities."""
        return round(sum((1 + sample.repeats) * sample.probability for sample in self.samples))


def _identity(sample: Sample) -> dict[str, object]:
    config = sample.config
    return {
        "digest": sample.digest,
        "captions": sample.captions,
        "bucket": str(sample.bucket),
        "crop": (sample.crop.resized, sample.crop.box),
        "repeats": sample.repeats,
        "probability": sample.probability,
        "background": config.alpha_colour,
        "trigger_words": config.trigger_words,
        "shuffled": config.keep_tags if config.shuffle_tags else None,
    }
