"""What picture files say about how they were made, and whether they are intact."""

from service.wire.provenance.credential import read_roots
from service.wire.provenance.inspection import PictureOrigin, origin_of

__all__ = ["PictureOrigin", "origin_of", "read_roots"]
