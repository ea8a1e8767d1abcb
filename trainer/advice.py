"""Warnings about training data that can be used, but hardly as it was meant. No torch."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

from trainer.buckets import Bucket
from trainer.inventory import Sample

_MUCH_ENLARGED = 1.5
_MUCH_STRETCHED = 1.1
_MUCH_CUT = 0.5
_SHOWN = 3


def advice(samples: Sequence[Sample], languages: dict[str, int], *, batch_size: int) -> Iterator[str]:
    """What is worth saying about the samples."""
    yield from _small_buckets(samples, batch_size)
    yield from _one_language(languages)
    yield from _twice(samples)
    yield from _those(
        samples,
        lambda sample: sample.enlarged > _MUCH_ENLARGED,
        f"enlarged by more than {_MUCH_ENLARGED:g}, which blurs them: give larger ones, a lower resolution, or drop them "
        "with max_upscale_threshold",
    )
    yield from _those(
        samples,
        lambda sample: not sample.config.crop and sample.stretched > _MUCH_STRETCHED,
        "stretched by more than a tenth: set crop, or add a size of their aspect ratio to resolution",
    )
    yield from _those(
        samples,
        lambda sample: _kept(sample) < _MUCH_CUT,
        "cut to less than half: add a size of their aspect ratio to resolution, or drop them with minimum_aspect_ratio and "
        "maximum_aspect_ratio",
    )


def some(names: Iterable[str], *, between: str = ", ") -> str:
    """The first few names, and how many more."""
    listed = list(names)
    rest = len(listed) - _SHOWN
    return between.join(listed[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _small_buckets(samples: Sequence[Sample], batch_size: int) -> Iterator[str]:
    shown: Counter[Bucket] = Counter()
    for sample in samples:
        shown[sample.bucket] += 1 + sample.repeats
    small = [f"{bucket} ({count})" for bucket, count in sorted(shown.items()) if count < batch_size]
    if small:
        yield (
            f"fewer pictures than a batch of {batch_size} in bucket {some(small)}: they are repeated to fill it; add "
            "pictures of that shape, or name fewer sizes in resolution"
        )


def _one_language(languages: dict[str, int]) -> Iterator[str]:
    for missing, there, name in (("zh", "en", "Chinese"), ("en", "zh", "English")):
        if languages[there] and not languages[missing]:
            yield (
                f"no caption is {name}: prompts in {name} may hardly show what is learnt; the model reads both, so give "
                f"{name} captions too, as further lines of the captions or for some pictures"
            )


def _twice(samples: Sequence[Sample]) -> Iterator[str]:
    keys: defaultdict[tuple[str, Bucket], list[str]] = defaultdict(list)
    for sample in samples:  # in another bucket it is another picture: sets at several resolutions share files
        keys[sample.digest, sample.bucket].append(f"{sample.dataset}: {sample.key}")
    doubles = [some(names, between=" = ") for names in keys.values() if len(names) > 1]
    if doubles:
        yield f"the same picture more than once, and so seen more often: {some(doubles)}; use repeats if that is meant"


def _those(samples: Sequence[Sample], is_one: Callable[[Sample], bool], what: str) -> Iterator[str]:
    found = [f"{sample.dataset}: {sample.key}" for sample in samples if is_one(sample)]
    if found:
        yield f"{len(found)} of {len(samples)} pictures ({some(found)}) are {what}"


def _kept(sample: Sample) -> float:
    """Share of the picture that its bucket shows."""
    width, height = sample.crop.resized
    return sample.bucket.area_px / (width * height)
