"""A grid as one labelled picture."""

import io
import math
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageDraw

from studio.generate.grid.plan import GridPlan, PlanColumn, PlanRow
from trainer.data.report import Font, drawable, find_font, wrapped

_MOST_PIXELS = 60_000_000
"""Limit of all cells together; larger pictures are made smaller."""
_GAP_PX, _LINE_PX, _SIDE_PX = 8, 18, 180
_HEAD_LINES = 3
_INK, _SOFT, _PAPER = "#22201d", "#5f584d", "#ffffff"


def draw_sheet(
    plan: GridPlan,
    files: dict[str, Path],
    *,
    title: str,
    label: Callable[[PlanColumn], str],
    seed: Callable[[PlanRow], str],
) -> bytes:
    """Return a PNG of the cells' pictures with their headers. ``files``: by ``row,column``; one without stays blank."""
    rows, columns = plan.rows, plan.columns
    font = find_font()
    width, height = _cell_px(plan, files)
    top = _GAP_PX + _LINE_PX + _GAP_PX + _HEAD_LINES * _LINE_PX
    size = (_SIDE_PX + len(columns) * (width + _GAP_PX) + _GAP_PX, top + len(rows) * (height + _GAP_PX) + _GAP_PX)
    sheet = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((_GAP_PX, _GAP_PX), drawable(title, font), fill=_SOFT, font=font)
    for c, column in enumerate(columns):
        left = _SIDE_PX + c * (width + _GAP_PX)
        _write(pen, (left, top - _HEAD_LINES * _LINE_PX), label(column), font, width, _HEAD_LINES)
    for r, row in enumerate(rows):
        y = top + r * (height + _GAP_PX)
        lines = max(1, height // _LINE_PX - 1)
        _write(pen, (_GAP_PX, y), f"{seed(row)} · {row.prompt}", font, _SIDE_PX - 2 * _GAP_PX, lines)
        for c in range(len(columns)):
            if (path := files.get(f"{r},{c}")) is not None:
                _paste(sheet, path, (_SIDE_PX + c * (width + _GAP_PX), y), (width, height))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _cell_px(plan: GridPlan, files: dict[str, Path]) -> tuple[int, int]:
    """Return the size of a cell: a picture's own, or less, so that all of them fit into the limit."""
    width, height = 128, 128
    for path in files.values():
        with Image.open(path) as image:
            width, height = image.size
        break
    factor = min(1.0, math.sqrt(_MOST_PIXELS / (width * height * plan.size)))
    return max(16, int(width * factor)), max(16, int(height * factor))


def _paste(sheet: Image.Image, path: Path, at: tuple[int, int], size: tuple[int, int]) -> None:
    with Image.open(path) as image:
        small = image.convert("RGB")
        small.thumbnail(size)
        sheet.paste(small, at)


def _write(pen: ImageDraw.ImageDraw, at: tuple[int, int], text: str, font: Font, width_px: int, most: int) -> None:
    for number, line in enumerate(wrapped(drawable(text, font), font, width_px)[:most]):
        pen.text((at[0], at[1] + number * _LINE_PX), line, fill=_INK, font=font)
