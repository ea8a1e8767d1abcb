"""Warnings about training data that can be used, but probably not as intended. No torch."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath

from longcat.problem import Problem
from trainer.data.buckets import Bucket
from trainer.data.inventory import languages_of
from trainer.data.sample import Sample

_MUCH_ENLARGED = 1.5
_MUCH_STRETCHED = 1.1
_MUCH_CUT = 0.5
_SHOWN = 3
_NUMBERED = re.compile(r"[0-9]{1,3}_.")
"""The beginning of a directory's name in kohya's sd-scripts: repeats, and the subject's words after them."""


def advice(samples: Sequence[Sample], *, batch_size: int) -> Iterator[Problem]:
    """Yield warnings about the samples."""
    yield from _small_buckets(samples, batch_size)
    yield from _one_language(languages_of(sample for sample in samples if not sample.is_prior))
    yield from _twice(samples)
    yield from _much_enlarged(samples)
    yield from _much_stretched(samples)
    yield from _much_cut(samples)
    yield from _numbered_folders(samples)


def some(names: Iterable[str], *, between: str = ", ", most: int = _SHOWN) -> str:
    """Join the first ``most`` names, and the number of the remaining ones: ``a, b, c … (+4)``."""
    listed = list(names)
    rest = len(listed) - most
    return between.join(listed[:most]) + (f" … (+{rest})" if rest > 0 else "")


def _small_buckets(samples: Sequence[Sample], batch_size: int) -> Iterator[Problem]:
    shown: Counter[tuple[Bucket, bool]] = Counter()
    for sample in samples:
        shown[sample.bucket, sample.is_prior] += 1 + sample.repeats
    small = [f"{bucket} ({count})" for (bucket, _), count in sorted(shown.items()) if count < batch_size]
    if small:
        yield Problem(
            code="bucket_smaller_than_batch",
            template="fewer pictures than a batch of {batch_size} in {buckets}; they are repeated to fill it",
            remedy_template="add pictures of that shape, or give fewer sizes in resolution",
            details={"batch_size": batch_size, "buckets": some(small)},
        )


def _one_language(languages: dict[str, int]) -> Iterator[Problem]:
    if languages["en"] and not languages["zh"]:
        yield Problem(
            code="no_chinese_captions",
            template="no caption is Chinese; Chinese prompts may hardly show what is learned",
            remedy_template="give Chinese captions too, as more lines of the captions or for some pictures: the model reads "
            "both languages",
        )
    if languages["zh"] and not languages["en"]:
        yield Problem(
            code="no_english_captions",
            template="no caption is English; English prompts may hardly show what is learned",
            remedy_template="give English captions too, as more lines of the captions or for some pictures: the model reads "
            "both languages",
        )


def _twice(samples: Sequence[Sample]) -> Iterator[Problem]:
    keys: defaultdict[tuple[str, Bucket, str], list[str]] = defaultdict(list)
    for sample in samples:  # in another bucket it is another picture: sets at several resolutions share files
        edited_from = "" if sample.reference is None else sample.reference.file.digest
        keys[sample.digest, sample.bucket, edited_from].append(_name(sample))
    doubles = [some(names, between=" = ") for names in keys.values() if len(names) > 1]
    if doubles:
        yield Problem(
            code="pictures_repeated",
            template="the same picture is present more than once, and shown more often: {pictures}",
            remedy_template="use repeats if that is intended",
            details={"pictures": some(doubles)},
        )


def _numbered_folders(samples: Sequence[Sample]) -> Iterator[Problem]:
    folders = dict.fromkeys(
        PurePosixPath(sample.config.uri, sample.key).parent.name
        for sample in samples
        if "repeats" not in sample.config.model_fields_set
    )
    if found := [name for name in folders if _NUMBERED.match(name)]:
        yield Problem(
            code="folder_numbers_unused",
            template="the numbers before {folders} are no repeats here, as they are for kohya's sd-scripts",
            remedy_template="give each directory as a dataset of its own; its repeats are one less than that number",
            details={"folders": some(found)},
        )


def _much_enlarged(samples: Sequence[Sample]) -> Iterator[Problem]:
    if found := [_name(sample) for sample in samples if sample.enlarged > _MUCH_ENLARGED]:
        yield Problem(
            code="pictures_enlarged",
            template="{count} of {total} pictures are enlarged by more than {factor}, which blurs them: {pictures}",
            remedy_template="give larger pictures, lower resolution, or drop them with max_upscale_threshold",
            details=_counts(found, samples) | {"factor": f"{_MUCH_ENLARGED:g}"},
        )


def _much_stretched(samples: Sequence[Sample]) -> Iterator[Problem]:
    if found := [_name(s) for s in samples if not s.config.crop and s.stretched > _MUCH_STRETCHED]:
        yield Problem(
            code="pictures_stretched",
            template="{count} of {total} pictures are stretched by more than a tenth: {pictures}",
            remedy_template="set crop, or add a size of their aspect ratio to resolution",
            details=_counts(found, samples),
        )


def _much_cut(samples: Sequence[Sample]) -> Iterator[Problem]:
    if found := [_name(sample) for sample in samples if _kept(sample) < _MUCH_CUT]:
        yield Problem(
            code="pictures_cut",
            template="{count} of {total} pictures are cut to less than half: {pictures}",
            remedy_template="add a size of their aspect ratio to resolution, or drop them with minimum_aspect_ratio and "
            "maximum_aspect_ratio",
            details=_counts(found, samples),
        )


def _counts(found: Sequence[str], samples: Sequence[Sample]) -> dict[str, object]:
    return {"count": len(found), "total": len(samples), "pictures": some(found)}


def _name(sample: Sample) -> str:
    return f"{sample.dataset}: {sample.key}"


def _kept(sample: Sample) -> float:
    """Return the share of the picture that its bucket shows."""
    width, height = sample.crop.resized
    return sample.bucket.area_px / (width * height)
