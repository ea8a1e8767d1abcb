"""Directories and buckets of captioned pictures to samples: what can be used, and the reason for all that cannot. No torch.

A scan looks at every file once; what it learns of pictures is remembered, what captions say is read anew.
"""

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from longcat.errors import DataError
from longcat.storage import Entry
from trainer.advice import advice, some
from trainer.buckets import bucket_choices, choose, fit, measure, resolution_kind
from trainer.caption_files import CAPTION_ENDINGS, CaptionReader
from trainer.captions import possible_captions
from trainer.dataset_config import DatasetConfig
from trainer.index import Index
from trainer.inventory import Dropped, Inventory, Looked, Sample
from trainer.pictures import ENDINGS, FOREIGN_ENDINGS, PictureFacts, inspect, is_promised
from trainer.sources import Listing, Source, open_source, source_name

__all__ = ["Dropped", "Inventory", "Sample", "nothing_usable", "scan"]

MAX_PIXELS = 200_000_000
"""Larger pictures are taken for decompression bombs."""

_OTHER_ENDINGS = CAPTION_ENDINGS | {
    ".md", ".db", ".ini", ".html", ".yaml", ".yml", ".toml", ".xml", ".log", ".pdf", ".py", ".sh", ".npy", ".npz", ".pt",
    ".safetensors", ".bak", ".url",
}  # fmt: skip
"""Endings of files that nobody takes for pictures."""
_STORE_THREADS = 8
"""For buckets: most of the time goes into waiting."""
_REASONS_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class _Terms:
    """What a scan is asked for."""

    resolution: tuple[str | float, ...]
    resolution_type: str
    alignment_px: int
    max_pixels: int
    count_tokens: Callable[[str], int] | None
    max_prompt_tokens: int | None
    on_picture: Callable[[int, int], None] | None


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """One picture file as it was found."""

    entry: Entry
    facts: PictureFacts | None
    captions: tuple[str, ...] = ()
    reason: str = ""
    """Why it cannot be read, or has no caption."""


def scan(
    datasets: Sequence[DatasetConfig],
    *,
    resolution: tuple[str | float, ...],
    resolution_type: str,
    alignment_px: int,
    max_pixels: int = MAX_PIXELS,
    index_file: Path | None = None,
    count_tokens: Callable[[str], int] | None = None,
    max_prompt_tokens: int | None = None,
    batch_size: int = 1,
    allow_empty: bool = False,
    on_picture: Callable[[int, int], None] | None = None,
) -> Inventory:
    """Everything that the datasets hold.

    ``resolution`` and ``resolution_type`` are for datasets that say none. ``index_file`` remembers what was learnt of
    pictures. Captions of more than ``max_prompt_tokens`` by ``count_tokens`` are dropped. ``on_picture`` is told how many
    of a dataset's pictures have been looked at. Raises ``DataError`` if nothing can be used, unless ``allow_empty``, or if a
    dataset cannot be looked at; ``ConfigError`` for resolutions that cannot be.
    """
    terms = _Terms(
        resolution=resolution,
        resolution_type=resolution_type,
        alignment_px=alignment_px,
        max_pixels=max_pixels,
        count_tokens=count_tokens,
        max_prompt_tokens=max_prompt_tokens,
        on_picture=on_picture,
    )
    enabled = [config for config in datasets if not config.disabled]
    index = Index(index_file, max_pixels=max_pixels)
    found = Inventory(samples=(), dropped=(), warnings=(), trigger_words=())
    for config in enabled:
        found = _joined(found, _DatasetScan(config, terms, index).run())
    more = tuple(advice(found.samples, found.languages, batch_size=batch_size))
    inventory = replace(found, warnings=found.warnings + more)
    if not inventory.samples and not allow_empty:
        raise DataError(nothing_usable(inventory))
    return inventory


def nothing_usable(inventory: Inventory) -> str:
    """Why there is nothing to train on: where was looked, what is there, and what is wrong with it."""
    if not inventory.looked:
        return "there is no training data: give instance_data_dir or data_backend_config"
    places = "; ".join(map(str, inventory.looked))
    said = f"no picture with a caption can be used: {places}"
    if not inventory.dropped:
        return f"{said}; pictures end in {', '.join(sorted(ENDINGS))}"
    reasons = "; ".join(f"{drop.key} {drop.reason}" for drop in inventory.dropped[:_REASONS_SHOWN])
    rest = len(inventory.dropped) - _REASONS_SHOWN
    return f"{said}; {reasons}" + (f"; and {rest} more" if rest > 0 else "")


class _DatasetScan:
    """The scan of one dataset."""

    def __init__(self, config: DatasetConfig, terms: _Terms, index: Index) -> None:
        self._config, self._terms, self._index = config, terms, index
        self._choices = bucket_choices(
            config,
            resolution=terms.resolution,
            resolution_type=terms.resolution_type,
            alignment_px=terms.alignment_px,
        )
        self._kind = resolution_kind(config, terms.resolution_type)
        self._dropped: list[Dropped] = []

    def run(self) -> Inventory:
        """List, read, sort out."""
        source = open_source(self._config)
        listing = source.list()
        for key, reason in listing.unreadable:
            self._drop(key, reason)
        captions = CaptionReader(self._config, source, listing)
        seen = self._read(source, self._pictures(listing), captions)
        for where, reason in captions.dropped:
            self._drop(where, reason)
        samples = tuple(sample for picture in seen if (sample := self._sample(picture)) is not None)
        endings = Counter(PurePosixPath(entry.key).suffix.lower() for entry in listing.entries)
        looked = Looked(dataset=self._config.id, uri=self._config.uri, endings=endings)
        found = Inventory(
            samples=samples,
            dropped=tuple(self._dropped),
            warnings=(),
            trigger_words=self._config.trigger_words,
            looked=(looked,),
        )
        return replace(found, warnings=tuple(self._warnings(found, seen, captions)))

    def _pictures(self, listing: Listing) -> list[Entry]:
        """The picture files; of others, those that may have been meant for pictures are dropped by name."""
        pictures = []
        for entry in listing.entries:
            ending = PurePosixPath(entry.key).suffix.lower()
            if ending in ENDINGS:
                pictures.append(entry)
            elif ending in FOREIGN_ENDINGS:
                self._drop(entry.key, f"is of a kind that is not read ({ending}): convert it to PNG or JPEG")
            elif ending not in _OTHER_ENDINGS and entry.key != self._config.caption_file:
                what = f"ends in {ending}" if ending else "has no ending"
                self._drop(entry.key, f"{what}, as no picture does: rename it if it is one")
        return pictures

    def _read(self, source: Source, pictures: list[Entry], captions: CaptionReader) -> list[_Seen]:
        """Every picture decoded, or remembered; what was learnt is kept even if the scan breaks off."""
        name = source_name(self._config)
        known = {entry: facts for entry in pictures if (facts := self._index.find(name, entry))}
        threads = _STORE_THREADS if self._config.type == "aws" else min(4, os.cpu_count() or 1)
        seen: list[_Seen] = []
        try:
            with ThreadPoolExecutor(threads) as pool, _cancelling(pool):
                jobs = pool.map(lambda entry: self._look_at(entry, source, captions, known.get(entry)), pictures)
                for picture in jobs:
                    seen.append(picture)
                    if picture.facts is not None:
                        known[picture.entry] = picture.facts
                    if self._terms.on_picture is not None:
                        self._terms.on_picture(len(seen), len(pictures))
        finally:
            self._index.remember(name, known)
            self._index.write()
        return seen

    def _look_at(self, entry: Entry, source: Source, captions: CaptionReader, known: PictureFacts | None) -> _Seen:
        facts = known
        try:
            if facts is None:
                facts = inspect(source.read(entry.key), max_pixels=self._terms.max_pixels)
            texts = () if facts.reason else captions.read(entry.key)
        except DataError as error:
            return _Seen(entry=entry, facts=facts, reason=str(error))
        return _Seen(entry=entry, facts=facts, captions=texts, reason=facts.reason)

    def _sample(self, picture: _Seen) -> Sample | None:
        """The sample, or None with the reason among what was dropped."""
        key, facts = picture.entry.key, picture.facts
        if facts is None or picture.reason:
            self._drop(key, picture.reason)
            return None
        bucket = choose(facts.width_px, facts.height_px, self._choices)
        sample = Sample(
            dataset=self._config.id,
            key=key,
            digest=facts.digest,
            captions=picture.captions,
            width_px=facts.width_px,
            height_px=facts.height_px,
            bucket=bucket,
            crop=fit(facts.width_px, facts.height_px, bucket, self._config, facts.digest),
            repeats=self._config.repeats,
            probability=self._config.probability,
            config=self._config,
        )
        reason = self._unwanted(sample)
        if reason:
            self._drop(key, reason)
            return None
        return self._of_short_captions(sample)

    def _unwanted(self, sample: Sample) -> str:
        """Why the configuration leaves this picture out; empty if it does not."""
        config, size = self._config, measure(sample.width_px, sample.height_px, self._kind)
        aspect = sample.width_px / sample.height_px
        shape = f"is {sample.width_px} x {sample.height_px} px"
        if size < config.minimum_image_size:
            return f"{shape}: {size:g} is less than minimum_image_size {config.minimum_image_size:g}"
        if config.maximum_image_size is not None and size > config.maximum_image_size:
            return f"{shape}: {size:g} is more than maximum_image_size {config.maximum_image_size:g}"
        if config.minimum_aspect_ratio is not None and aspect < config.minimum_aspect_ratio:
            return f"{shape}: {aspect:.3g} is less than minimum_aspect_ratio {config.minimum_aspect_ratio:g}"
        if config.maximum_aspect_ratio is not None and aspect > config.maximum_aspect_ratio:
            return f"{shape}: {aspect:.3g} is more than maximum_aspect_ratio {config.maximum_aspect_ratio:g}"
        if config.max_upscale_threshold is not None and sample.enlarged > 1 + config.max_upscale_threshold:
            return (
                f"{shape}: bucket {sample.bucket} enlarges it {sample.enlarged:.2f} times, more than max_upscale_threshold "
                f"{config.max_upscale_threshold:g} permits"
            )
        return ""

    def _of_short_captions(self, sample: Sample) -> Sample | None:
        """The sample with those of its captions that the model reads whole."""
        count, most = self._terms.count_tokens, self._terms.max_prompt_tokens
        if count is None or most is None:
            return sample
        kept, reasons = [], []
        for caption in sample.captions:
            tokens = max(map(count, possible_captions(replace(sample, captions=(caption,)))))
            if tokens <= most:
                kept.append(caption)
            else:
                reasons.append(f"has a caption of {tokens} tokens; the model reads {most}: shorten {caption[:40]!r}…")
        for reason in reasons if kept else reasons[:1]:
            self._drop(sample.key, reason)
        return replace(sample, captions=tuple(kept)) if kept else None

    def _warnings(self, found: Inventory, seen: list[_Seen], captions: CaptionReader) -> Iterator[str]:
        said = f"dataset {self._config.id!r}"
        if not found.samples:
            yield nothing_usable(found)
        guessed = sorted(captions.guessed)
        if guessed:
            yield f"{said}: {some(guessed)} not in UTF-8, taken for GB18030: see whether the captions read well"
        unused = captions.unused()
        if unused:
            yield f"{said}: captions of {some(unused)} belong to no picture there"
        facts = ((picture.entry.key, picture.facts) for picture in seen if picture.facts is not None)
        other = [f"{key} ({f.format})" for key, f in facts if f.format and not is_promised(key, f.format)]
        if other:
            yield f"{said}: {some(other)} not what the ending says; read as what they are"

    def _drop(self, key: str, reason: str) -> None:
        self._dropped.append(Dropped(dataset=self._config.id, key=key, reason=reason))


def _joined(first: Inventory, second: Inventory) -> Inventory:
    words = dict.fromkeys(first.trigger_words + second.trigger_words)
    return Inventory(
        samples=first.samples + second.samples,
        dropped=first.dropped + second.dropped,
        warnings=first.warnings + second.warnings,
        trigger_words=tuple(words),
        looked=first.looked + second.looked,
    )


@contextlib.contextmanager
def _cancelling(pool: ThreadPoolExecutor) -> Iterator[None]:
    """Whatever breaks off the work breaks off all of it, and is not waited for."""
    try:
        yield
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
