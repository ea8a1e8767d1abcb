"""Captions of a dataset: which pictures a filter keeps, and how often a tag occurs. No torch."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal, get_args

from longcat.errors import DataError
from trainer.data.captions.language import detect_language
from trainer.data.inventory import Inventory
from trainer.data.pictures import ENDINGS
from trainer.data.sample import Sample

Kind = Literal["all", "none", "zh", "en", "other"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_COMMAS = re.compile("[,，、\n]")
_LONGEST_TAG = 40
"""Characters: what is longer is a sentence."""
_SHOWN_TAGS = 40


@dataclass(frozen=True, kw_only=True)
class CaptionedPicture:
    """A picture with its captions, whether a training can use it or not."""

    key: str
    captions: tuple[str, ...]
    sample: Sample | None
    """The trainer's sample; None for a picture that it leaves out."""


@dataclass(frozen=True, kw_only=True)
class Filter:
    """The pictures that are shown, and changed in bulk."""

    kind: Kind = "all"
    """Pictures without captions, or with one in that language."""
    text: str = ""
    """Text that a caption or the file's name holds, in either case."""

    @property
    def is_on(self) -> bool:
        """Return True if it may leave out pictures."""
        return self.kind != "all" or bool(self.text)

    def keeps(self, entry: CaptionedPicture) -> bool:
        """Return True for a picture that is shown."""
        if self.kind == "none" and entry.captions:
            return False
        if self.kind in ("zh", "en", "other") and all(detect_language(c) != self.kind for c in entry.captions):
            return False
        wanted = self.text.casefold()
        return not wanted or any(wanted in text.casefold() for text in (entry.key, *entry.captions))


def entries_of(inventory: Inventory, read: Callable[[str], str]) -> list[CaptionedPicture]:
    """Return all pictures, those that can be used first; ``read`` returns the captions of one that cannot."""
    found = [CaptionedPicture(key=sample.key, captions=sample.captions, sample=sample) for sample in inventory.samples]
    for dropped in inventory.dropped:
        if PurePosixPath(dropped.key).suffix.lower() in ENDINGS:
            try:
                captions = tuple(read(dropped.key).splitlines())
            except DataError:  # its reason is shown
                continue
            found.append(CaptionedPicture(key=dropped.key, captions=captions, sample=None))
    return found


def tag_counts(entries: Iterable[CaptionedPicture]) -> Sequence[tuple[str, int]]:
    """Return the parts between commas that occur more than once, the most frequent first."""
    counts: Counter[str] = Counter()
    for entry in entries:
        parts = {part.strip(" .。") for caption in entry.captions for part in _COMMAS.split(caption)}
        counts.update(part for part in parts if part and len(part) <= _LONGEST_TAG)
    return [(tag, count) for tag, count in counts.most_common(_SHOWN_TAGS) if count > 1]
