"""Datasets in lists: their number of pictures, and some of them to show. No torch."""

from dataclasses import dataclass

from studio.datasets.datasets import Dataset
from trainer.data.pictures import ENDINGS

_SHOWN = 4


@dataclass(frozen=True, kw_only=True)
class Card:
    """A dataset in a list."""

    dataset: Dataset
    pictures: int
    """Right in the folder, whether they can be used or not."""
    first: tuple[str, ...]
    """Some of them."""


def card_of(dataset: Dataset, *, most: int = _SHOWN) -> Card:
    """Return the card of a dataset; pictures one folder below count where there are none in the folder itself."""
    pictures = sorted(entry.name for entry in dataset.folder.iterdir() if entry.suffix.lower() in ENDINGS)
    if not pictures:
        nested = dataset.folder.glob("*/*")
        pictures = sorted(str(e.relative_to(dataset.folder)) for e in nested if e.suffix.lower() in ENDINGS)
    return Card(dataset=dataset, pictures=len(pictures), first=tuple(pictures[:most]))
