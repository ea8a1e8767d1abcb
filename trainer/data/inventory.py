"""The result of a scan of the training data: samples, dropped files with their problems, warnings. No torch."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath

from longcat.problem import Problem
from longcat.storage.interface import Entry
from trainer.config.dataset_options import DatasetConfig
from trainer.data.buckets import Bucket
from trainer.data.captions.language import detect_language
from trainer.data.sample import Sample, groups_of


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """A file, a caption or a row of a table that is not used."""

    dataset: str
    """The dataset's id."""
    problem: Problem
    """Its ``field`` is ``file``, its ``value`` the key, or a table's name and line."""

    @property
    def key(self) -> str:
        """The file's key, or a table's name and line."""
        return str(self.problem.value)


@dataclass(frozen=True, kw_only=True)
class DatasetContents:
    """The files of a dataset by their endings, used or not."""

    dataset: str
    uri: str
    endings: Mapping[str, int]
    """Number of files by ending, in lower case."""

    @classmethod
    def of(cls, config: DatasetConfig, entries: Iterable[Entry]) -> "DatasetContents":
        """Return the contents of a dataset with these files."""
        endings = Counter(PurePosixPath(entry.key).suffix.lower() for entry in entries)
        return cls(dataset=config.id, uri=config.uri, endings=endings)

    def __str__(self) -> str:
        kinds = sorted(self.endings.items(), key=lambda item: (-item[1], item[0]))
        files = [f"{count} {ending or '–'}" for ending, count in kinds]
        return f"{self.dataset} ({', '.join([self.uri, *files])})"


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """The training data."""

    samples: tuple[Sample, ...]
    """Samples in the order of datasets, then of keys."""
    dropped: tuple[Dropped, ...]
    warnings: tuple[Problem, ...]
    """Problems of data that is used all the same."""
    trigger_words: tuple[str, ...]
    contents: tuple[DatasetContents, ...] = field(default=())
    held_out: tuple[Sample, ...] = ()
    """Pictures that are not trained on: the loss on them shows what the adapter has learned beyond its own pictures."""

    @cached_property
    def hash(self) -> str:
        """SHA-256 of everything that affects training: pictures, captions, buckets, policies; not names or locations."""
        lines = sorted(json.dumps(_identity(sample), sort_keys=True) for sample in self.samples)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @cached_property
    def languages(self) -> dict[str, int]:
        """Number of captions by language: zh, en, other."""
        return languages_of(self.samples)

    @cached_property
    def buckets(self) -> Counter[Bucket]:
        """Number of pictures by bucket, each counted once."""
        return Counter(sample.bucket for sample in self.samples)

    @property
    def shown_in_validation(self) -> tuple[Sample, ...]:
        """Samples whose captions, or pictures to edit, validation may take: of pairs, the held-out ones come first."""
        return (*(sample for sample in self.held_out if sample.reference is not None), *self.samples)

    @property
    def pictures_an_epoch(self) -> int:
        """Number of pictures that an epoch shows, repeats and probabilities included."""
        groups = groups_of(self.samples)
        return sum((1 + group.repeats) * group.share(len(indices)) for group, indices in groups.items())


def languages_of(samples: Iterable[Sample]) -> dict[str, int]:
    """Return the number of captions by language: zh, en, other."""
    found = Counter(detect_language(caption) for sample in samples for caption in sample.captions)
    return {"zh": found["zh"], "en": found["en"], "other": found["other"]}


def _identity(sample: Sample) -> dict[str, object]:
    config = sample.config
    identity: dict[str, object] = {
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
    if sample.mask is not None:
        masks = sample.mask.config
        identity["mask"] = sample.mask.digest, masks.conditioning_type, masks.alpha_colour
    if sample.reference is not None:
        identity["reference"] = sample.reference.identity
    if sample.kinds:
        identity |= {"kinds": sample.kinds, "shares": config.caption_shares}
    return identity | ({"prior": True} if sample.is_prior else {})
