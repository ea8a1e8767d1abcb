"""A visible mark on pictures, such as ``AI`` or ``AI生成``, as GB 45438-2025 and its like ask for.

Text in white with a black outline, legible on any background, whose capitals are 5 % of the picture's shorter side high: GB
45438-2025, section 4.2, gives that as the least height.
"""

import hashlib
import io
import math
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pydantic import BaseModel, ConfigDict

from longcat.errors import ConfigError
from longcat.problem import reason_of
from longcat.storage.regular import open_regular

Position = Literal["bottom-right", "bottom-left", "top-right", "top-left"]

_LEAST_HEIGHT = 0.05
_MEASURED_PX = 1000
"""Size of the font, and side of the picture, at which a mark is measured: all its lengths are proportional."""
_OUTLINE, _MARGIN = 0.08, 0.4
"""Width of the outline, and distance from the picture's edges, as parts of the font's size."""
_UNASSIGNED = "\U0010ffff"
"""A character that no font has: its picture stands for every other one that is missing."""
_LARGEST_FONT_BYTES = 64 * 2**20


class VisibleMark(BaseModel):
    """A mark as recipes note it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: str
    position: Position
    font_sha256: str | None = None
    """Checksum of the font's file; None for the font that comes with Pillow."""


class MarkPainter:
    """Paints one mark on pictures. Threads may share it."""

    def __init__(self, text: str, position: Position, font: Path | None) -> None:
        """Read the font. Raises ``ConfigError`` if it cannot be read, lacks a character, or the text is too long."""
        content = None if font is None else _read(font)
        self._content = content
        digest = None if content is None else hashlib.sha256(content).hexdigest()
        self.mark = VisibleMark(text=text, position=position, font_sha256=digest)
        measured = self._font(_MEASURED_PX, font)
        self._check_characters(measured, font)
        _, top, _, bottom = measured.getbbox("X")
        self._size = _LEAST_HEIGHT * _MEASURED_PX / (bottom - top)
        """Size of the font, in parts of the picture's shorter side."""
        left, _, right, _ = measured.getbbox(text)
        width = self._size * ((right - left) / _MEASURED_PX + 2 * (_OUTLINE + _MARGIN))
        if width > 1:
            raise ConfigError(
                "visible_mark_too_long",
                "{percent} % of a square picture's width, at the least height of such a mark",
                remedy="give a shorter text",
                field="visible_mark",
                value=text,
                percent=math.ceil(100 * width),
            )

    def painted(self, pixels: np.ndarray) -> np.ndarray:
        """Return a picture with the mark. ``pixels``: (H, W, 3) in uint8."""
        height, width, _ = pixels.shape
        size = math.ceil(self._size * min(height, width))
        font, outline, margin = self._font(size, None), max(1, round(_OUTLINE * size)), round(_MARGIN * size)
        image = Image.fromarray(pixels)
        draw = ImageDraw.Draw(image)
        left, top, right, bottom = draw.textbbox((0, 0), self.mark.text, font=font, stroke_width=outline)
        x = margin - left if "left" in self.mark.position else width - margin - right
        y = margin - top if "top" in self.mark.position else height - margin - bottom
        draw.text((x, y), self.mark.text, font=font, fill="white", stroke_width=outline, stroke_fill="black")
        return np.asarray(image)

    def _font(self, size: float, path: Path | None) -> ImageFont.FreeTypeFont:
        if self._content is None:
            font = ImageFont.load_default(size)
            assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow's wheels come with FreeType
            return font
        try:
            return ImageFont.truetype(io.BytesIO(self._content), size, layout_engine=ImageFont.Layout.BASIC)
        except OSError as error:
            raise _unreadable(path, error) from error

    def _check_characters(self, font: ImageFont.FreeTypeFont, path: Path | None) -> None:
        missing = _picture_of(font, _UNASSIGNED)
        absent = [each for each in self.mark.text if not each.isspace() and _picture_of(font, each) in (missing, b"")]
        if absent:
            raise ConfigError(
                "visible_mark_without_glyph",
                "the font {font} has no picture of {characters}",
                remedy="give a font that has them with --visible-mark-font, such as Noto Sans CJK for Chinese",
                field="visible_mark",
                value=self.mark.text,
                font="Aileron (Pillow)" if path is None else str(path),
                characters=" ".join(dict.fromkeys(absent)),
            )


def _picture_of(font: ImageFont.FreeTypeFont, character: str) -> bytes:
    return bytes(font.getmask(character))


def _read(path: Path) -> bytes:
    try:
        with open_regular(path) as stream:
            return stream.read(_LARGEST_FONT_BYTES)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise _unreadable(path, error) from error


def _unreadable(path: Path | None, error: Exception) -> ConfigError:
    return ConfigError(
        "visible_mark_font_unreadable",
        "cannot be read as a font: {reason}",
        remedy="give a TrueType or OpenType file",
        field="visible_mark_font",
        value=None if path is None else str(path),
        reason=reason_of(error),
    )
