"""A cache of thumbnails. No torch."""

import hashlib
import io
from pathlib import Path

from longcat.sampling.encoding.picture_file import MAX_PIXELS, decode
from longcat.storage.atomic import write_atomically
from studio.datasets.captions import unreadable

SIDE_PX = 320
_QUALITY = 80


class Thumbnails:
    """Thumbnails in a folder, by the original's path, time and size."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def of(self, picture: Path, *, side_px: int = SIDE_PX) -> bytes:
        """Return a WebP of at most so many px a side, upright. Raises ``DataError`` if the file is not a picture."""
        try:
            status = picture.stat()
            mark = f"{picture}\0{status.st_ino}\0{status.st_mtime_ns}\0{status.st_size}\0{side_px}"
            kept = self._folder / f"{hashlib.sha256(mark.encode('utf-8', 'surrogateescape')).hexdigest()[:32]}.webp"
            if kept.exists():
                return kept.read_bytes()
            content = picture.read_bytes()
        except OSError as error:
            raise unreadable(picture, error) from error
        image = decode(content, max_pixels=MAX_PIXELS)
        image.thumbnail((side_px, side_px))
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=_QUALITY)
        write_atomically(kept, buffer.getvalue(), durable=False)
        return buffer.getvalue()
