"""The C2PA manifest of a picture that is changed. It becomes a part of the manifests of what is made from it."""

import io
import json
import logging

from longcat.logs import log_event
from longcat.problem import reason_of
from service.wire.provenance.extent import ManifestExtent, extent_of
from service.wire.provenance.signing import PARENT_LABEL, Ingredient, offline_context
from service.wire.provenance.verification import read_manifest

log = logging.getLogger("lithograph")

_MOST_BYTES = 2**20
"""Largest manifest that is kept, since each file made from the picture carries it."""
_MOST_BOXES = 500
"""Most boxes of a manifest that is kept, about forty edits."""


def parent_of(content: bytes, *, sha256: str) -> bytes | None:
    """Return a picture file's manifest in the form that ``ManifestSigner.sign`` takes; None if there is none to keep.

    ``sha256``: of the file. A manifest is not kept if it is damaged, large, or that of another file.
    """
    if (extent := extent_of(content)) is None:
        return None
    from c2pa import C2paError

    try:
        return _archive_of(content, extent, sha256)
    except (C2paError, ValueError) as error:
        log_event(log, "c2pa_parent_ignored", logging.DEBUG, reason=reason_of(error), sha256=sha256)
        return None


def _archive_of(content: bytes, extent: ManifestExtent, sha256: str) -> bytes:
    """Return a manifest as c2pa's archive of an ingredient. Raises ``C2paError``, or ``ValueError`` if it is not kept."""
    from c2pa import Builder

    if not extent.is_within(size_bytes=_MOST_BYTES, boxes=_MOST_BOXES):
        raise ValueError(f"more than {_MOST_BYTES} bytes or {_MOST_BOXES} boxes")
    manifest = read_manifest(content)
    if manifest is None or not manifest.is_intact:
        raise ValueError("not intact")
    archive = io.BytesIO()
    with Builder({"assertions": []}, offline_context()) as builder:
        definition = Ingredient.of_picture(sha256).definition(PARENT_LABEL)
        builder.add_ingredient(json.dumps(definition), extent.media_type, io.BytesIO(content))
        builder.write_ingredient_archive(PARENT_LABEL, archive)
    return archive.getvalue()
