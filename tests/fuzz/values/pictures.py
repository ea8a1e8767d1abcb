"""Valid pictures from which the fuzz tests derive others."""

import io
import zipfile
from collections.abc import Sequence

from PIL import Image, PngImagePlugin


def png(side_px: int = 64, **texts: str) -> bytes:
    """Return a small PNG, with texts in iTXt chunks."""
    chunks = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        chunks.add_itxt(key, text)
    return picture("PNG", side_px, pnginfo=chunks)


def picture(format_: str, side_px: int = 64, mode: str = "RGB", **options: object) -> bytes:
    """Return a small picture."""
    buffer = io.BytesIO()
    Image.new(mode, (side_px, side_px), 1).save(buffer, format_, **options)
    return buffer.getvalue()


def zipped(members: Sequence[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return a zip, in which a name may occur twice."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            archive.writestr(info, content)
    return buffer.getvalue()
