"""The requirements that a scan checks pictures and captions against. No torch."""

from collections.abc import Callable
from dataclasses import dataclass

from longcat.sampling.encoding.picture_file import MAX_PIXELS


@dataclass(frozen=True, kw_only=True)
class PromptLimit:
    """The longest prompt of a model."""

    max_tokens: int
    """Captions with more tokens are dropped."""
    count: Callable[[str], int]
    """Counts the tokens of a caption."""


@dataclass(frozen=True, kw_only=True)
class ScanOptions:
    """The requirements that a scan checks pictures and captions against."""

    resolution: tuple[str | float, ...]
    """Resolution of datasets that give none, as ``resolution_type``."""
    resolution_type: str
    alignment_px: int
    """Sides of buckets are multiples of it."""
    max_pixels: int = MAX_PIXELS
    """Larger pictures are dropped as possible decompression bombs."""
    prompt_limit: Callable[[], PromptLimit] | None = None
    """Returns the limit that captions are held against; called once a usable picture is found."""
    on_picture: Callable[[int, int], None] | None = None
    """Called after each picture of a dataset with the number of pictures done, and of all."""
