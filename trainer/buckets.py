"""Aspect buckets: the sizes that pictures are trained at, and how each picture is brought to one. No torch.

Every size is on a grid, so that pictures of one bucket form a batch and the transformer sees whole tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from longcat.errors import ConfigError
from trainer.dataset_config import DatasetConfig, width_and_height

_WIDEST = 2.0
"""Largest width by height of the usual set, and its inverse the smallest: what LongCat-Image was shown."""
_MOST_AREA_PX = 4096 * 4096
"""Beyond it a number was surely meant in another unit."""
_SAME_ASPECT = 0.03
"""Aspect ratios whose logarithms differ by less are one: sizes on a grid cannot be nearer."""
_LITTLE_ENLARGED = 1.1
"""A larger bucket is worth this much enlarging."""
_NEARLY_AS_LARGE = 0.8


@dataclass(frozen=True, order=True, kw_only=True)
class Bucket:
    """A size that pictures are trained at."""

    width_px: int
    height_px: int

    @property
    def area_px(self) -> int:
        """Pixels in all."""
        return self.width_px * self.height_px

    def __str__(self) -> str:
        return f"{self.width_px}x{self.height_px}"


@dataclass(frozen=True, kw_only=True)
class Crop:
    """How a picture comes to its bucket's size: resized, then cut."""

    resized: tuple[int, int]
    """Width and height of the whole picture before it is cut, in px."""
    box: tuple[int, int]
    """Left and top of what is kept, in the resized picture."""


def bucket_choices(
    config: DatasetConfig, *, resolution: tuple[str | float, ...], resolution_type: str, alignment_px: int
) -> tuple[Bucket, ...]:
    """The buckets that a dataset's pictures can fall into; its own resolution goes before the training's.

    Raises ``ConfigError`` for sizes off the grid, and numbers that make sense only in another ``resolution_type``.
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
    if not found:
        raise ConfigError(
            f"dataset {config.id!r}: crop_aspect square, but its resolution names no square; give one, as 1024x1024"
        )
    return tuple(sorted(found))


def resolution_kind(config: DatasetConfig, resolution_type: str) -> str:
    """The dataset's own ``resolution_type``, or the training's where it says none."""
    return config.resolution_type or resolution_type


def measure(width: int, height: int, kind: str) -> float:
    """A picture's size in the unit of a ``resolution_type``."""
    if kind == "pixel":
        return min(width, height)
    return width * height / 1e6 if kind == "area" else math.sqrt(width * height)


def choose(width: int, height: int, buckets: Sequence[Bucket]) -> Bucket:
    """The bucket nearest in aspect ratio; of equally near ones, the largest that hardly enlarges the picture."""

    def distance(bucket: Bucket) -> float:
        return abs(math.log(width / height) - math.log(bucket.width_px / bucket.height_px))

    def enlarged(bucket: Bucket) -> float:
        return max(bucket.width_px / width, bucket.height_px / height)

    nearest = min(map(distance, buckets))
    near = [bucket for bucket in buckets if distance(bucket) <= nearest + _SAME_ASPECT]
    fitting = [bucket for bucket in near if enlarged(bucket) <= _LITTLE_ENLARGED]
    area = max(b.area_px for b in fitting) if fitting else min(b.area_px for b in near)
    alike = [b for b in fitting or near if _NEARLY_AS_LARGE * area <= b.area_px <= area / _NEARLY_AS_LARGE]
    return min(alike, key=lambda bucket: (distance(bucket), -bucket.area_px, bucket))


def fit(width: int, height: int, bucket: Bucket, config: DatasetConfig, digest: str) -> Crop:
    """How a picture of this size comes to the bucket's. ``digest`` decides where a random crop lies."""
    if not config.crop:
        return Crop(resized=(bucket.width_px, bucket.height_px), box=(0, 0))
    scale = max(bucket.width_px / width, bucket.height_px / height)
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


def _explicit(size: str, grid_px: int, dataset: str) -> Bucket:
    width, height = width_and_height(size)
    bucket = Bucket(width_px=_on_grid(width, grid_px), height_px=_on_grid(height, grid_px))
    if (bucket.width_px, bucket.height_px) != (width, height):
        raise ConfigError(f"dataset {dataset!r} resolution {size}: sides are multiples of {grid_px} px; give {bucket}")
    return bucket


def _usual(number: float, kind: str, grid_px: int, dataset: str) -> set[Bucket]:
    """The usual aspect ratios for a number in the unit of ``kind``."""
    area = number * 1e6 if kind == "area" else number**2
    said = f"dataset {dataset!r} resolution {number:g} of resolution_type {kind}"
    if area > _MOST_AREA_PX:
        meant = "megapixels, as 1, or resolution_type pixel_area" if kind == "area" else "a side in px, as 1024"
        raise ConfigError(f"{said} is {area / 1e6:,.0f} megapixels; give {meant}")
    if area < grid_px**2:
        meant = f"at least {grid_px**2 / 1e6:.3f}" if kind == "area" else f"at least {grid_px}"
        raise ConfigError(f"{said} is less than one cell of the grid of {grid_px} px; give {meant}")
    sizes = _of_shorter_side(number, grid_px) if kind == "pixel" else _of_area(area, grid_px)
    return {Bucket(width_px=width, height_px=height) for pair in sizes for width, height in (pair, (pair[1], pair[0]))}


def _of_shorter_side(side: float, grid_px: int) -> list[tuple[int, int]]:
    shorter = _on_grid(side, grid_px)
    return [(longer, shorter) for longer in range(shorter, int(_WIDEST * shorter) + 1, grid_px)]


def _of_area(area: float, grid_px: int) -> list[tuple[int, int]]:
    """For each width from the square's, the height on the grid that comes nearest to the area."""
    side = _on_grid(math.sqrt(area), grid_px)
    found = [(side, side)]
    for width in range(side + grid_px, int(math.sqrt(area * _WIDEST)) + grid_px + 1, grid_px):
        height = _on_grid(area / width, grid_px)
        if 1 < width / height <= _WIDEST and _NEARLY_AS_LARGE <= width * height / area <= 1 / _NEARLY_AS_LARGE:
            found.append((width, height))
    return found


def _on_grid(length: float, grid_px: int) -> int:
    """The multiple of the grid nearest to a length, one cell at least."""
    return max(1, int(length / grid_px + 0.5)) * grid_px
