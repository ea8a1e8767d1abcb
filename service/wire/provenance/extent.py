"""The size of a C2PA manifest in a picture file, before c2pa's library reads it."""

import re
from typing import Literal, NamedTuple


class _Format(NamedTuple):
    """A format of files, whose manifests are in parts, and the place of a part's size."""

    media_type: str
    beginning: re.Pattern[bytes]
    """Of a file."""
    part: re.Pattern[bytes]
    size_at: int
    """From the beginning of a part."""
    size_bytes: int
    order: Literal["big", "little"]


_FORMATS = (
    _Format("image/png", re.compile(rb"\x89PNG"), re.compile(rb"caBX.{4}jumb", re.DOTALL), -4, 4, "big"),
    _Format("image/jpeg", re.compile(rb"\xff\xd8\xff"), re.compile(rb"\xff\xeb..JP", re.DOTALL), 2, 2, "big"),
    _Format(
        "image/webp", re.compile(rb"RIFF.{4}WEBP", re.DOTALL), re.compile(rb"C2PA.{8}jumb", re.DOTALL), 4, 4, "little"
    ),
)
"""C2PA 2.2, appendix A.3 (embedding manifests)."""


class ManifestExtent(NamedTuple):
    """The extent of a manifest: it is no larger."""

    media_type: str
    """The file's."""
    size_bytes: int
    boxes: int
    """c2pa's library takes time by their square: 2 s for 4,000."""

    def is_within(self, *, size_bytes: int, boxes: int) -> bool:
        """Return True if the manifest exceeds neither bound."""
        return self.size_bytes <= size_bytes and self.boxes <= boxes


def extent_of(content: bytes) -> ManifestExtent | None:
    """Return the extent of a file's manifest; None without one, and in formats other than these.

    Everything in the file that looks like a part of a manifest counts.
    """
    kind = next((each for each in _FORMATS if each.beginning.match(content)), None)
    if kind is None or not (places := [found.start() + kind.size_at for found in kind.part.finditer(content)]):
        return None
    size = sum(int.from_bytes(content[at : at + kind.size_bytes], kind.order) for at in places)
    return ManifestExtent(kind.media_type, size, content.count(b"jumd") + len(places))  # a box may be cut by two parts
