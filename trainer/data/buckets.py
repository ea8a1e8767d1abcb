"""Aspect buckets: the sizes that pictures are trained at, and the crop of each picture to one. No torch.

Sides are multiples of the alignment, so that pictures of one bucket form a batch of whole tokens.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from longcat.errors import ConfigError
from trainer.config.dataset_options import DatasetConfig
from trainer.config.reading.sizes import width_and_height

_WIDEST = 2.0
"""Largest aspect ratio of the usual set, and its inverse the smallest: the range that LongCat-Image was trained on."""
_MOST_AREA_PX = 4096 * 4096
"""Area from which on a number must have been meant in another unit."""
_SAME_ASPECT = 0.03
"""Aspect ratios whose logarithms differ by less count as equal: aligned sizes cannot be nearer."""
_LITTLE_ENLARGED = 1.1
"""Enlargement that a larger bucket is worth."""
_NEARLY_AS_LARGE = 0.8


@dataclass(frozen=True, order=True, kw_only=True)
class Bucket:
    """A size that pictures are trained at."""

    width_px: int
    height_px: int

    @property
    def area_px(self) -> int:
        """Area in pixels."""
        return self.width_px * self.height_px

    def __str__(self) -> str:
        return f"{self.width_px}x{self.height_px}"


@dataclass(frozen=True, kw_only=True)
class Crop:
    """The way of a picture to its bucket's size: resized, then cropped."""

    resized: tuple[int, int]
    """Width and height of the whole resized picture, in px."""
    box: tuple[int, int]
    """Left and top of the part that is kept, in the resized picture."""


def bucket_choices(
    config: DatasetConfig, *, resolution: tuple[str | float, ...], resolution_type: str, alignment_px: int
) -> tuple[Bucket, ...]:
    """Return the buckets of a dataset; its own resolution takes precedence over the training's.

    Raises ``ConfigError`` for sizes that are not aligned, and for numbers that fit only another ``resolution_type``.
    """
    kind = resolution_kind(config, resolution_type)
    found: set[Bucket] = set()
    for size in config.resolution or resolution:
        if isinstance(size, str):
            found.add(_explicit(size, alignment_px, config.id))
        else:
            found |= _usual(size, kind, alignment_px, config.id)
    if config.crop_aspect == "square":
        found = {bucket for bucket in found if bucket.width_px == bucket.height_px}
    if config.crop_aspect_buckets:
        found = {bucket for aspect in config.crop_aspect_buckets for bucket in _nearest(aspect, found)}
    if not found:
        raise ConfigError(
            "crop_aspect_without_square",
            "the resolution of dataset {dataset!r} has no square",
            remedy="give one, such as 1024x1024",
            field="crop_aspect",
            value=config.crop_aspect,
            dataset=config.id,
        )
    return tuple(sorted(found))


def resolution_kind(config: DatasetConfig, resolution_type: str) -> str:
    """Return the dataset's own ``resolution_type``, or the training's if it has none."""
    return config.resolution_type or resolution_type


def measure(width: int, height: int, kind: str) -> float:
    """Return a picture's size in the unit of a ``resolution_type``."""
    if kind == "pixel":
        return min(width, height)
    return width * height / 1e6 if kind == "area" else math.sqrt(width * height)


def choose(width: int, height: int, buckets: Sequence[Bucket]) -> Bucket:
    """Return the bucket nearest in aspect ratio; of equally near ones, the largest that hardly enlarges the picture."""

    def distance(bucket: Bucket) -> float:
        return _distance(width / height, bucket)

    def enlarged(bucket: Bucket) -> float:
        return max(bucket.width_px / width, bucket.height_px / height)

    near = _nearest(width / height, buckets)
    fitting = [bucket for bucket in near if enlarged(bucket) <= _LITTLE_ENLARGED]
    area = max(b.area_px for b in fitting) if fitting else min(b.area_px for b in near)
    alike = [b for b in fitting or near if _NEARLY_AS_LARGE * area <= b.area_px <= area / _NEARLY_AS_LARGE]
    return min(alike, key=lambda bucket: (distance(bucket), -bucket.area_px, bucket))


def choose_any(digest: str, buckets: Sequence[Bucket]) -> Bucket:
    """Return a bucket that follows from the picture's content alone."""
    return buckets[int(digest[16:24], 16) % len(buckets)]


def fit(width: int, height: int, bucket: Bucket, config: DatasetConfig, digest: str, *, kind: str) -> Crop:
    """Return the crop of a picture of this size to the bucket's. ``digest`` decides the position of a random crop."""
    if not config.crop:
        return Crop(resized=(bucket.width_px, bucket.height_px), box=(0, 0))
    scale = max(bucket.width_px / width, bucket.height_px / height, _reduction(width, height, config, kind))
    resized = (max(bucket.width_px, round(width * scale)), max(bucket.height_px, round(height * scale)))
    spare = (resized[0] - bucket.width_px, resized[1] - bucket.height_px)
    match config.crop_style:
        case "corner":
            box = (0, 0)
        case "center":
            box = (spare[0] // 2, spare[1] // 2)
        case "random":
            drawn = (int(digest[:8], 16), int(digest[8:16], 16))
            box = (drawn[0] % (spare[0] + 1), drawn[1] % (spare[1] + 1))
    return Crop(resized=resized, box=box)


def _reduction(width: int, height: int, config: DatasetConfig, kind: str) -> float:
    """Return the factor by which a picture larger than ``maximum_image_size`` is reduced before it is cropped, else 0."""
    size = measure(width, height, kind)
    if config.maximum_image_size is None or config.target_downsample_size is None or size <= config.maximum_image_size:
        return 0.0
    share = min(1.0, config.target_downsample_size / size)
    return math.sqrt(share) if kind == "area" else share


def _distance(aspect: float, bucket: Bucket) -> float:
    return abs(math.log(aspect) - math.log(bucket.width_px / bucket.height_px))


def _nearest(aspect: float, buckets: Collection[Bucket]) -> list[Bucket]:
    """Return the buckets nearest to an aspect ratio, and those that count as equally near."""
    nearest = min((_distance(aspect, bucket) for bucket in buckets), default=0.0)
    return [bucket for bucket in buckets if _distance(aspect, bucket) <= nearest + _SAME_ASPECT]


def _explicit(size: str, alignment_px: int, dataset: str) -> Bucket:
    width, height = width_and_height(size)
    bucket = Bucket(width_px=_aligned(width, alignment_px), height_px=_aligned(height, alignment_px))
    if (bucket.width_px, bucket.height_px) != (width, height):
        raise ConfigError(
            "resolution_not_aligned",
            "its sides are not multiples of {alignment} px, in dataset {dataset!r}",
            remedy="give {nearest}",
            field="resolution",
            value=size,
            alignment=alignment_px,
            dataset=dataset,
            nearest=str(bucket),
        )
    return bucket


def _usual(number: float, kind: str, alignment_px: int, dataset: str) -> set[Bucket]:
    """Return buckets of the usual aspect ratios for a number in the unit of ``kind``."""
    area = number * 1e6 if kind == "area" else number * number  # a power of it would overflow, not become infinite
    details: dict[str, object] = {"dataset": dataset, "kind": kind}
    if area > _MOST_AREA_PX:
        if kind == "area":
            raise ConfigError(
                "resolution_megapixels_too_many",
                "{megapixels} megapixels, with resolution_type {kind}, in dataset {dataset!r}",
                remedy="give megapixels, such as 1, or set resolution_type pixel_area",
                field="resolution",
                value=f"{number:g}",
                megapixels=f"{area / 1e6:,.0f}",
                **details,
            )
        raise ConfigError(
            "resolution_side_too_long",
            "{megapixels} megapixels, with resolution_type {kind}, in dataset {dataset!r}",
            remedy="give a side in px, such as 1024",
            field="resolution",
            value=f"{number:g}",
            megapixels=f"{area / 1e6:,.0f}",
            **details,
        )
    if area < alignment_px**2:
        raise ConfigError(
            "resolution_too_small",
            "less than a picture of {alignment} x {alignment} px, with resolution_type {kind}, in dataset {dataset!r}",
            remedy="give at least {least}",
            field="resolution",
            value=f"{number:g}",
            alignment=alignment_px,
            least=f"{alignment_px**2 / 1e6:.3f}" if kind == "area" else alignment_px,
            **details,
        )
    sizes = _of_shorter_side(number, alignment_px) if kind == "pixel" else _of_area(area, alignment_px)
    return {Bucket(width_px=width, height_px=height) for pair in sizes for width, height in (pair, (pair[1], pair[0]))}


def _of_shorter_side(side: float, alignment_px: int) -> list[tuple[int, int]]:
    shorter = _aligned(side, alignment_px)
    return [(longer, shorter) for longer in range(shorter, int(_WIDEST * shorter) + 1, alignment_px)]


def _of_area(area: float, alignment_px: int) -> list[tuple[int, int]]:
    """Return, for each width from the square's on, the aligned height that comes nearest to the area."""
    side = _aligned(math.sqrt(area), alignment_px)
    found = [(side, side)]
    for width in range(side + alignment_px, int(math.sqrt(area * _WIDEST)) + alignment_px + 1, alignment_px):
        height = _aligned(area / width, alignment_px)
        if 1 < width / height <= _WIDEST and _NEARLY_AS_LARGE <= width * height / area <= 1 / _NEARLY_AS_LARGE:
            found.append((width, height))
    return found


def _aligned(length: float, alignment_px: int) -> int:
    """Return the multiple of the alignment nearest to a length, at least one."""
    return max(1, int(length / alignment_px + 0.5)) * alignment_px
