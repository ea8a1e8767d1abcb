"""The C2PA manifest of a picture that is changed. It becomes a part of the manifests of what is made from it."""

import io
import json
import logging
import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

from PIL import Image

from longcat.logs import log_event
from longcat.problem import reason_of
from service.wire.provenance.signing import PARENT_LABEL, Ingredient, offline_context
from service.wire.provenance.verification import read_manifest

log = logging.getLogger("lithograph")

_MOST_BYTES = 2**20
"""Largest manifest that is kept, since each file made from the picture carries it."""
_MOST_BOXES = 500
"""Most boxes of a manifest, about forty edits: c2pa's library takes time by their square, 2 s for 4,000."""


class _Format(NamedTuple):
    """A format of files, whose manifests are in parts, and the place of a part's size."""

    media_type: str
    pattern: re.Pattern[bytes]
    size_at: int
    """From the beginning of what the pattern finds."""
    size_bytes: int
    order: Literal["big", "little"]


_JPEG = _Format("image/jpeg", re.compile(rb"\xff\xeb..JP", re.DOTALL), 2, 2, "big")
_FORMATS: Mapping[str | None, _Format] = {
    "PNG": _Format("image/png", re.compile(rb"caBX.{4}jumb", re.DOTALL), -4, 4, "big"),
    "JPEG": _JPEG,
    "MPO": _JPEG,
    "WEBP": _Format("image/webp", re.compile(rb"C2PA.{8}jumb", re.DOTALL), 4, 4, "little"),
}
"""Those of Pillow whose manifests are kept. MPO is a JPEG of several pictures, as phones make it. C2PA 2.2, appendix A.3."""


def parent_of(content: bytes, *, sha256: str) -> bytes | None:
    """Return a picture file's manifest in the form that ``ManifestSigner.sign`` takes; None if there is none to keep.

    ``content``: a file that Pillow has read. ``sha256``: of that file. A manifest is not kept if it is damaged, large, or
    that of another file.
    """
    with Image.open(io.BytesIO(content)) as image:
        kind = _FORMATS.get(image.format)
    if kind is None or (size := _manifest_bytes(content, kind)) == 0:
        return None
    from c2pa import C2paError

    try:
        return _archive_of(content, kind, size, sha256)
    except (C2paError, ValueError) as error:
        log_event(log, "c2pa_parent_ignored", logging.DEBUG, reason=reason_of(error), sha256=sha256)
        return None


def _archive_of(content: bytes, kind: _Format, size: int, sha256: str) -> bytes:
    """Return a manifest as c2pa's archive of an ingredient. Raises ``C2paError``, or ``ValueError`` if it is not kept."""
    from c2pa import Builder

    if size > _MOST_BYTES or content.count(b"jumd") > _MOST_BOXES:
        raise ValueError(f"more than {_MOST_BYTES} bytes or {_MOST_BOXES} boxes")
    manifest = read_manifest(content)
    if manifest is None or not manifest.is_intact:
        raise ValueError("not intact")
    archive = io.BytesIO()
    with Builder({"assertions": []}, offline_context()) as builder:
        definition = Ingredient.of_picture(sha256).definition(PARENT_LABEL)
        builder.add_ingredient(json.dumps(definition), kind.media_type, io.BytesIO(content))
        builder.write_ingredient_archive(PARENT_LABEL, archive)
    return archive.getvalue()


def _manifest_bytes(content: bytes, kind: _Format) -> int:
    """Return at least the size of a file's manifest, and 0 without one, whatever else the file has."""
    places = (found.start() + kind.size_at for found in kind.pattern.finditer(content))
    return sum(int.from_bytes(content[at : at + kind.size_bytes], kind.order) for at in places)
