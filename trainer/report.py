"""What a scan found, for people: a report file, a text for the terminal, a sheet of captioned pictures. No torch."""

import io
import json
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from longcat.errors import DataError
from trainer.atomic import write_atomically
from trainer.inventory import Inventory, Sample
from trainer.pictures import read_pixels

_DROPPED_SHOWN = 20
_THUMBNAIL_PX = 192
_MARGIN_PX = 8
_FONT_PX = 13
_LINE_PX = 17
_LINES = 4
"""Of text under a picture: one that says where it is from, the rest its captions."""
_COLUMNS = 8
_FONT_FOLDERS = (
    "~/.local/share/fonts", "~/.fonts", "~/Library/Fonts", "/usr/local/share/fonts", "/usr/share/fonts",
    "/System/Library/Fonts", "/Library/Fonts", "C:/Windows/Fonts",
)  # fmt: skip
_CHINESE_FONTS = (
    "NotoSansCJK*", "NotoSansSC*", "NotoSansHans*", "SourceHanSans*", "wqy-*", "DroidSansFallback*", "PingFang*", "STHeiti*",
    "Hiragino*GB*", "msyh*", "simhei*", "simsun*", "Deng*", "ArialUnicode*", "Arial Unicode*", "NotoSerifCJK*", "uming*",
    "ukai*",
)  # fmt: skip
"""Those that are likely to be there, the best to read first."""
_FONT_ENDINGS = {".ttf", ".ttc", ".otf"}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
"""What a file name could do to a terminal."""
_MOST_CHARACTERS = 500
_NO_CHARACTER = "\U0010ffff"

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def report(inventory: Inventory) -> dict[str, Any]:
    """Everything worth knowing, as JSON has it."""
    return {
        "hash": inventory.hash,
        "pictures": len(inventory.samples),
        "pictures_an_epoch": inventory.pictures_an_epoch,
        "captions": sum(len(sample.captions) for sample in inventory.samples),
        "languages": inventory.languages,
        "buckets": {str(bucket): count for bucket, count in sorted(inventory.buckets.items())},
        "trigger_words": list(inventory.trigger_words),
        "datasets": [
            {
                "dataset": looked.dataset,
                "uri": looked.uri,
                "files": dict(sorted(looked.endings.items())),
                "pictures": sum(sample.dataset == looked.dataset for sample in inventory.samples),
                "dropped": sum(drop.dataset == looked.dataset for drop in inventory.dropped),
            }
            for looked in inventory.looked
        ],
        "warnings": list(inventory.warnings),
        "dropped": [{"dataset": drop.dataset, "key": drop.key, "reason": drop.reason} for drop in inventory.dropped],
    }


def write_report(inventory: Inventory, path: Path) -> None:
    """The report as a JSON file. Bytes of file names that are no Unicode stand as escaped surrogates, as JSON permits."""
    text = json.dumps(report(inventory), ensure_ascii=False, indent=2) + "\n"
    write_atomically(path, text.encode("utf-8", "backslashreplace"))


def describe(inventory: Inventory) -> str:
    """What is there, what is not used and why, in lines for a terminal."""
    text = "\n".join(_CONTROL.sub("?", line) for line in _lines(inventory))
    return text.encode("utf-8", "backslashreplace").decode()


def contact_sheet(inventory: Inventory, path: Path, most: int = 64) -> None:
    """A PNG of up to ``most`` pictures, spread over the data, as the training sees them: cut, with captions beneath."""
    samples = _spread(inventory.samples, most)
    columns = max(1, min(_COLUMNS, len(samples)))
    rows = max(1, -(-len(samples) // columns))
    width, height = _THUMBNAIL_PX + 2 * _MARGIN_PX, _THUMBNAIL_PX + _LINES * _LINE_PX + 2 * _MARGIN_PX
    sheet = Image.new("RGB", (columns * width, rows * height), "#f4f4f4")
    font = find_font()
    for place, sample in enumerate(samples):
        cell = _cell(sample, width, height, font)
        sheet.paste(cell, (place % columns * width, place // columns * height))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    write_atomically(path, buffer.getvalue())


def find_font(folders: tuple[str, ...] = _FONT_FOLDERS) -> Font:
    """A font that has Chinese characters, or the one that Pillow brings, which has none."""
    for pattern in _CHINESE_FONTS:
        for folder in folders:
            for path in sorted(Path(folder).expanduser().rglob(pattern)):
                if path.suffix.lower() not in _FONT_ENDINGS:
                    continue
                try:
                    font = ImageFont.truetype(str(path), _FONT_PX)
                except OSError:  # damaged, or of a kind that FreeType does not read: there may be another
                    continue
                if _draws("中", font):
                    return font
    return ImageFont.load_default(_FONT_PX)


def drawable(text: str, font: Font) -> str:
    """The text with each run of characters that the font lacks as one ``…``."""
    shown = "".join(
        char if char.isspace() or _draws(char, font) else "\0" for char in unicodedata.normalize("NFC", text)
    )
    parts = shown.split("\0")
    return "…".join(part for place, part in enumerate(parts) if part or place in (0, len(parts) - 1))


def _lines(inventory: Inventory) -> Iterator[str]:
    for looked in inventory.looked:
        yield str(looked)
    counts, samples = inventory.languages, inventory.samples
    yield (
        f"usable: {len(samples)} pictures with {sum(counts.values())} captions ({counts['zh']} Chinese, "
        f"{counts['en']} English, {counts['other']} other); an epoch shows {inventory.pictures_an_epoch}"
    )
    if inventory.trigger_words:
        yield f"trigger words: {', '.join(inventory.trigger_words)}"
    if inventory.buckets:
        yield "buckets:"
        yield from (f"  {bucket!s:>11}  {count}" for bucket, count in sorted(inventory.buckets.items()))
    if inventory.dropped:
        yield f"dropped: {len(inventory.dropped)}"
        yield from (f"  {drop.dataset}: {drop.key} {drop.reason}" for drop in inventory.dropped[:_DROPPED_SHOWN])
        rest = inventory.dropped[_DROPPED_SHOWN:]
        if rest:
            where = ", ".join(f"{count} of {name}" for name, count in Counter(drop.dataset for drop in rest).items())
            yield f"  and {len(rest)} more ({where}), in the report file"
    if inventory.warnings:
        yield "warnings:"
        yield from (f"  {warning}" for warning in inventory.warnings)


def _spread(samples: tuple[Sample, ...], most: int) -> list[Sample]:
    """Up to so many, in order; drawn, as even distances would fall in with data that alternates."""
    count = min(len(samples), most)
    return [samples[place] for place in sorted(random.Random(count).sample(range(len(samples)), count))]  # noqa: S311


def _cell(sample: Sample, width: int, height: int, font: Font) -> Image.Image:
    cell = Image.new("RGB", (width, height), "#ffffff")
    draw = ImageDraw.Draw(cell)
    try:
        thumbnail = Image.fromarray(read_pixels(sample))
        thumbnail.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
        cell.paste(thumbnail, ((width - thumbnail.width) // 2, _MARGIN_PX + (_THUMBNAIL_PX - thumbnail.height) // 2))
        captions = list(sample.captions)
    except DataError as error:  # gone since the scan: the sheet says so in its place
        captions = [str(error)]
    name = Path(sample.key).name
    wanted = [f"{name} {sample.bucket}", *captions]
    lines = [line for text in wanted for line in _wrapped(drawable(text[:_MOST_CHARACTERS], font), font, _THUMBNAIL_PX)]
    for number, line in enumerate(lines[:_LINES]):
        at = (_MARGIN_PX, _MARGIN_PX + _THUMBNAIL_PX + 4 + number * _LINE_PX)
        draw.text(at, line, fill="#808080" if number == 0 else "#000000", font=font)
    return cell


def _wrapped(text: str, font: Font, width_px: int) -> list[str]:
    """Lines no wider than that; broken at spaces where there are any."""
    lines, line = [], ""
    for char in " ".join(text.split()):
        if font.getlength(line + char) <= width_px:
            line += char
            continue
        head, space, tail = line.rpartition(" ")
        lines.append(head if space else line)
        line = (tail if space else "") + char
    return [*lines, line.strip()]


def _draws(char: str, font: Font) -> bool:
    """Whether the font has a picture of its own for a character, and not the box that stands for those it lacks."""
    return _mask(char, font) != _mask(_NO_CHARACTER, font)


@lru_cache(maxsize=4096)
def _mask(char: str, font: Font) -> bytes:
    return bytes(font.getmask(char))
