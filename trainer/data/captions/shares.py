"""Captions by share: several of a picture, from several files or columns, chosen by what each kind is to have. No torch.

A kind is a language, or a source: the ending of a caption file or the name of a column.
"""

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from longcat.errors import DataError
from trainer.config.dataset_options import DatasetConfig
from trainer.data.captions.language import detect_language
from trainer.data.sample import Sample


class Caption(NamedTuple):
    """A caption and its source."""

    text: str
    source: str = ""
    """Ending of its file or name of its column."""


@dataclass(frozen=True, kw_only=True)
class KindCount:
    """The captions of one kind in a dataset."""

    share: float
    """Its share of what is shown of a picture that has all kinds."""
    captions: int
    pictures: int
    """Pictures that have a caption of this kind."""


def with_shares(captions: Sequence[Caption], config: DatasetConfig) -> tuple[tuple[Caption, ...], tuple[str, ...]]:
    """Return the captions that have a share, and the kind of each.

    Raises ``DataError`` if none has one. Without ``caption_shares``, return all captions and no kinds.
    """
    if not config.caption_shares:
        return tuple(captions), ()
    kinds = [caption.source if config.shares_by_source else detect_language(caption.text) for caption in captions]
    used = [place for place, kind in enumerate(kinds) if config.caption_shares.get(kind)]
    if not used:
        raise DataError(
            "caption_without_share",
            "no caption: it has captions of {kinds} alone, which have no share in caption_shares",
            remedy="give them a share, or the picture a caption of another kind",
            kinds=", ".join(dict.fromkeys(kinds)),
        )
    return tuple(captions[place] for place in used), tuple(kinds[place] for place in used)


def choose(sample: Sample, rng: random.Random) -> str:
    """Return one of the sample's captions: a kind by its share among the picture's kinds, then one of that kind."""
    if not sample.kinds:
        return rng.choice(sample.captions)
    present = list(dict.fromkeys(sample.kinds))
    shares = sample.config.caption_shares
    (kind,) = rng.choices(present, [shares[kind] for kind in present])
    return rng.choice([text for text, other in zip(sample.captions, sample.kinds, strict=True) if other == kind])


def count_kinds(samples: Iterable[Sample]) -> dict[str, dict[str, KindCount]]:
    """Return the captions by dataset and kind, of datasets with ``caption_shares``."""
    captions: Counter[tuple[str, str]] = Counter()
    pictures: Counter[tuple[str, str]] = Counter()
    shares: dict[str, dict[str, float]] = {}
    for sample in samples:
        captions.update((sample.dataset, kind) for kind in sample.kinds)
        pictures.update((sample.dataset, kind) for kind in set(sample.kinds))
        if sample.kinds:
            shares[sample.dataset] = sample.config.caption_shares
    return {
        dataset: {
            kind: KindCount(
                share=share / sum(given.values()), captions=captions[dataset, kind], pictures=pictures[dataset, kind]
            )
            for kind, share in given.items()
        }
        for dataset, given in shares.items()
    }
