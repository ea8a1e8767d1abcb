"""The scan of one dataset: samples of its usable pictures, and the problem of each file that is not used. No torch.

Facts about pictures are kept in an index from scan to scan; captions are read every time.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from longcat.errors import DataError
from longcat.problem import Problem
from longcat.storage.interface import Entry
from trainer.config.dataset_options import DatasetConfig
from trainer.data.advice import some
from trainer.data.buckets import Bucket, Crop, bucket_choices, choose, choose_any, fit, resolution_kind
from trainer.data.captions.compose import possible_captions
from trainer.data.captions.reader import CAPTION_ENDINGS, NO_CAPTIONS, CaptionReader, PictureCaptions
from trainer.data.inventory import DatasetContents, Dropped, Inventory
from trainer.data.pictures import ENDINGS, FOREIGN_ENDINGS, PictureFacts, inspect, is_promised
from trainer.data.sample import LinkedPicture, PairReference, Sample
from trainer.data.scanning.index import Index
from trainer.data.scanning.limits import excluded, nothing_usable, too_long
from trainer.data.scanning.linked import MASKS, REFERENCES, LinkedReader, folder_within
from trainer.data.scanning.options import ScanOptions
from trainer.data.sources import Listing, Source, open_source, source_name

_OTHER_ENDINGS = CAPTION_ENDINGS | {
    ".md", ".db", ".ini", ".html", ".yaml", ".yml", ".toml", ".xml", ".log", ".pdf", ".py", ".sh", ".npy", ".npz", ".pt",
    ".safetensors", ".bak", ".url",
}  # fmt: skip
"""Endings of files that are obviously not pictures: they are skipped without a problem."""
_STORE_THREADS = 8
"""Threads that read from a bucket: most of the time is spent waiting."""


@dataclass(frozen=True, kw_only=True)
class _ReadPicture:
    """The result of reading a picture file."""

    entry: Entry
    facts: PictureFacts | None
    captions: PictureCaptions = NO_CAPTIONS
    linked: Mapping[str, LinkedPicture] = field(default_factory=dict)
    """Its mask and its reference, as far as its dataset has them."""
    problems: tuple[Problem, ...] = ()
    """The reasons why it cannot be used: its own, and those of the pictures that belong to it."""


class DatasetScan:
    """The scan of one dataset."""

    def __init__(
        self,
        config: DatasetConfig,
        options: ScanOptions,
        index: Index,
        *,
        masks: DatasetConfig | None = None,
        references: DatasetConfig | None = None,
    ) -> None:
        """``masks`` and ``references`` are the datasets of the pictures' masks, and of those that they are edited from."""
        self._config, self._options, self._index = config, options, index
        self._choices = bucket_choices(
            config,
            resolution=options.resolution,
            resolution_type=options.resolution_type,
            alignment_px=options.alignment_px,
        )
        self._kind = resolution_kind(config, options.resolution_type)
        self._dropped: list[Dropped] = []
        given = (("mask", masks, MASKS), ("reference", references, REFERENCES))
        self._linked = {
            name: LinkedReader(of, problems, index, max_pixels=options.max_pixels)
            for name, of, problems in given
            if of is not None
        }
        inside = (folder_within(config, of) for _, of, _ in given if of is not None)
        self._left_out = tuple(folder for folder in inside if folder is not None)

    def run(self) -> Inventory:
        """List the files, read them, and sort them into samples and dropped files."""
        source = open_source(self._config)
        listing = source.list()
        for key, problem in listing.unreadable:
            self._drop(key, problem)
        captions = CaptionReader(self._config, source, listing)
        pictures = self._read(source, self._pictures(listing), captions)
        for row, problem in captions.dropped:
            self._drop(row, problem)
        usable = [sample for picture in pictures if (sample := self._sample(picture)) is not None]
        samples = tuple(self._subset(usable))
        contents = (DatasetContents.of(self._config, listing.entries), *(of.contents for of in self._linked.values()))
        found = Inventory(
            samples=samples,
            dropped=tuple(self._dropped),
            warnings=(),
            trigger_words=self._config.trigger_words,
            contents=contents,
        )
        warnings = tuple(self._warnings(found, pictures, captions))
        if len(samples) < len(usable):
            warnings += (
                Problem(
                    code="pictures_over_limit", template="{used} of {usable} pictures are used, by max_num_samples",
                    field="dataset", value=self._config.id, details={"used": len(samples), "usable": len(usable)},
                ),
            )  # fmt: skip
        return replace(found, warnings=warnings)

    def _subset(self, samples: list[Sample]) -> list[Sample]:
        """Return at most ``max_num_samples``, in order: the choice follows from the dataset's id and each content."""
        most = self._config.max_num_samples
        if most is None or len(samples) <= most:
            return samples
        by_hash = sorted(
            samples, key=lambda s: hashlib.sha256(f"{self._config.id} {s.digest} {s.key}".encode()).digest()
        )
        chosen = {sample.key for sample in by_hash[:most]}
        return [sample for sample in samples if sample.key in chosen]

    def _pictures(self, listing: Listing) -> list[Entry]:
        """Return the picture files, and drop files that may have been meant as pictures."""
        pictures = []
        for entry in listing.entries:
            ending = PurePosixPath(entry.key).suffix.lower()
            if entry.key.startswith(self._left_out):
                continue
            if ending in ENDINGS:
                pictures.append(entry)
            elif ending in FOREIGN_ENDINGS:
                self._drop(entry.key, Problem(
                    code="picture_kind_unsupported",
                    template="{ending} files are not supported",
                    remedy_template="convert or unpack it to PNG or JPEG files",
                    details={"ending": ending},
                ))  # fmt: skip
            elif ending not in _OTHER_ENDINGS and not self._is_of_captions(entry.key):
                self._drop(entry.key, Problem(
                    code="picture_ending_unknown",
                    template="its name does not end as a picture's",
                    remedy_template="rename it if it is a picture",
                ))  # fmt: skip
        return pictures

    def _is_of_captions(self, key: str) -> bool:
        return key == self._config.caption_file or key.endswith(self._config.caption_endings or "/")

    def _read(self, source: Source, pictures: list[Entry], captions: CaptionReader) -> list[_ReadPicture]:
        """Decode every picture that the index does not know. Facts are kept even if the scan is aborted."""
        name = source_name(self._config)
        known = {entry: facts for entry in pictures if (facts := self._index.find(name, entry))}
        threads = _STORE_THREADS if self._config.type == "aws" else min(4, os.cpu_count() or 1)
        read: list[_ReadPicture] = []
        try:
            with ThreadPoolExecutor(threads) as pool, _cancelling(pool):
                jobs = pool.map(lambda entry: self._read_picture(entry, source, captions, known.get(entry)), pictures)
                for picture in jobs:
                    read.append(picture)
                    if picture.facts is not None:
                        known[picture.entry] = picture.facts
                    if self._options.on_picture is not None:
                        self._options.on_picture(len(read), len(pictures))
        finally:
            self._index.store(name, known)
            for linked in self._linked.values():
                linked.store()
            self._index.write()
        return read

    def _read_picture(
        self, entry: Entry, source: Source, captions: CaptionReader, known: PictureFacts | None
    ) -> _ReadPicture:
        facts, found, linked, problems = known, NO_CAPTIONS, dict[str, LinkedPicture](), list[Problem]()
        try:
            if facts is None:
                facts = inspect(source.read(entry.key), max_pixels=self._options.max_pixels)
            if facts.problem is not None:
                raise DataError.of([facts.problem])
            found = captions.read(entry.key)
        except DataError as error:
            problems.append(error.problems[0])
        for name, reader in self._linked.items():
            try:
                linked[name] = reader.read(entry.key, facts)
            except DataError as error:
                problems.append(error.problems[0])
        return _ReadPicture(entry=entry, facts=facts, captions=found, linked=linked, problems=tuple(problems))

    def _sample(self, picture: _ReadPicture) -> Sample | None:
        """Return the sample, or drop the picture and return None."""
        key, facts = picture.entry.key, picture.facts
        if picture.problems:
            for problem in picture.problems:
                self._drop(key, problem)
            return None
        assert facts is not None
        if self._config.crop_aspect == "random":
            bucket = choose_any(facts.digest, self._choices)
        else:
            bucket = choose(facts.width_px, facts.height_px, self._choices)
        crop = fit(facts.width_px, facts.height_px, bucket, self._config, facts.digest, kind=self._kind)
        sample = Sample(
            dataset=self._config.id,
            key=key,
            digest=facts.digest,
            captions=picture.captions.texts,
            kinds=picture.captions.kinds,
            width_px=facts.width_px,
            height_px=facts.height_px,
            bucket=bucket,
            crop=crop,
            repeats=self._config.repeats,
            probability=self._config.probability,
            config=self._config,
            mask=picture.linked.get("mask"),
            reference=self._reference(picture, bucket, crop),
        )
        if (limit := excluded(sample, self._kind)) is not None:
            self._drop(key, limit)
            return None
        return self._with_short_captions(sample)

    def _reference(self, picture: _ReadPicture, bucket: Bucket, crop: Crop) -> PairReference | None:
        if (file := picture.linked.get("reference")) is None:
            return None
        return PairReference(file=file, bucket=bucket, crop=None if self._linked["reference"].has_any_shape else crop)

    def _with_short_captions(self, sample: Sample) -> Sample | None:
        """Return the sample without captions that are too long for the model; None if none is left."""
        if self._options.prompt_limit is None:
            return sample
        limit = self._options.prompt_limit()
        kept, problems = list[int](), []
        for place, caption in enumerate(sample.captions):
            tokens = max(map(limit.count, possible_captions(replace(sample, captions=(caption,)))))
            if tokens <= limit.max_tokens:
                kept.append(place)
            else:
                problems.append(too_long(caption, tokens, limit.max_tokens))
        for problem in problems if kept else problems[:1]:
            self._drop(sample.key, problem)
        captions, kinds = (tuple(of[place] for place in kept if of) for of in (sample.captions, sample.kinds))
        return replace(sample, captions=captions, kinds=kinds) if kept else None

    def _warnings(self, found: Inventory, pictures: list[_ReadPicture], captions: CaptionReader) -> Iterator[Problem]:
        if not found.samples:
            yield nothing_usable(found)
        yield from captions.warnings()
        for linked in self._linked.values():
            yield from linked.warnings()
        facts = ((picture.entry.key, picture.facts) for picture in pictures if picture.facts is not None)
        if others := [f"{key} ({f.format})" for key, f in facts if f.format and not is_promised(key, f.format)]:
            yield Problem(
                code="pictures_of_another_format",
                template="{files}: not the format that the ending stands for; read by content",
                field="dataset", value=self._config.id, details={"files": some(others)},
            )  # fmt: skip

    def _drop(self, key: str, problem: Problem) -> None:
        self._dropped.append(Dropped(dataset=self._config.id, problem=problem.within(field="file", value=key)))


@contextlib.contextmanager
def _cancelling(pool: ThreadPoolExecutor) -> Iterator[None]:
    """Cancel the pool's pending work if the block raises, without waiting for it."""
    try:
        yield
    except BaseException:  # also Ctrl-C: the pending files would be read first; it is raised again
        pool.shutdown(wait=False, cancel_futures=True)
        raise
