"""Reports of a scan: a JSON file, lines for a terminal, a contact sheet of captioned pictures. No torch."""

import io
import json
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from longcat.errors import DataError
from longcat.problem import Problem
from longcat.storage.atomic import write_atomically
from trainer.data.captions.shares import count_kinds
from trainer.data.inventory import Inventory
from trainer.data.pictures import read_pixels, read_reference
from trainer.data.sample import Sample

_DROPPED_SHOWN = 20
_THUMBNAIL_PX = 192
_MARGIN_PX = 8
_FONT_PX = 13
_LINE_PX = 17
_LINES = 4
"""Lines of text under a picture: one with its file and bucket, the rest its captions."""
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
"""Common fonts with Chinese characters, the most legible first."""
_FONT_ENDINGS = {".ttf", ".ttc", ".otf"}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
"""Control characters, with which a file name could change a terminal."""
_MOST_CHARACTERS = 500
_NO_CHARACTER = "\U0010ffff"

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def report(inventory: Inventory) -> dict[str, Any]:
    """Return the report as a JSON object."""
    kinds = count_kinds(inventory.samples)
    return {
        "hash": inventory.hash,
        "pictures": len(inventory.samples),
        "held_out": len(inventory.held_out),
        "pictures_an_epoch": inventory.pictures_an_epoch,
        "captions": sum(len(sample.captions) for sample in inventory.samples),
        "languages": inventory.languages,
        "buckets": {str(bucket): count for bucket, count in sorted(inventory.buckets.items())},
        "trigger_words": list(inventory.trigger_words),
        "datasets": [
            {
                "dataset": contents.dataset,
                "uri": contents.uri,
                "files": dict(sorted(contents.endings.items())),
                "pictures": sum(sample.dataset == contents.dataset for sample in inventory.samples),
                "regularisation": any(s.is_prior for s in inventory.samples if s.dataset == contents.dataset),
                "held_out": sum(sample.dataset == contents.dataset for sample in inventory.held_out),
                "paired": sum(s.reference is not None for s in inventory.samples if s.dataset == contents.dataset),
                "masked": sum(s.mask is not None for s in inventory.samples if s.dataset == contents.dataset),
                "caption_shares": {kind: asdict(count) for kind, count in kinds.get(contents.dataset, {}).items()},
                "dropped": sum(drop.dataset == contents.dataset for drop in inventory.dropped),
            }
            for contents in inventory.contents
        ],
        "warnings": [
            {"dataset": warning.value if warning.field == "dataset" else None, **_problem(warning)}
            for warning in inventory.warnings
        ],
        "dropped": [
            {"dataset": drop.dataset, "file": drop.key, **_problem(drop.problem)} for drop in inventory.dropped
        ],
    }


def _problem(problem: Problem) -> dict[str, Any]:
    return {
        "code": problem.code,
        "problem": problem.problem,
        "remedy": problem.remedy,
    }


def write_report(inventory: Inventory, path: Path) -> None:
    """Write the report as JSON. Bytes of file names that are not Unicode become escaped surrogates, as JSON permits."""
    text = json.dumps(report(inventory), ensure_ascii=False, indent=2) + "\n"
    write_atomically(path, text.encode("utf-8", "backslashreplace"))


def describe(inventory: Inventory) -> str:
    """Return the report as lines for a terminal."""
    text = "\n".join(_CONTROL.sub("?", line) for line in _lines(inventory))
    return text.encode("utf-8", "backslashreplace").decode()


def contact_sheet(inventory: Inventory, path: Path, most: int = 64) -> None:
    """Write a PNG of up to ``most`` pictures, spread over the data: cropped as in training, with captions beneath."""
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
    """Find a font with Chinese characters, or return Pillow's own, which has none."""
    for pattern in _CHINESE_FONTS:
        for folder in folders:
            for path in sorted(Path(folder).expanduser().rglob(pattern)):
                if path.suffix.lower() not in _FONT_ENDINGS:
                    continue
                try:
                    font = ImageFont.truetype(str(path), _FONT_PX)
                except OSError:  # damaged, or of a kind that FreeType does not read: another may work
                    continue
                if _draws("中", font):
                    return font
    return ImageFont.load_default(_FONT_PX)


def drawable(text: str, font: Font) -> str:
    """Replace each run of characters that the font lacks by one ``…``."""
    shown = "".join(
        char if char.isspace() or _draws(char, font) else "\0" for char in unicodedata.normalize("NFC", text)
    )
    parts = shown.split("\0")
    return "…".join(part for place, part in enumerate(parts) if part or place in (0, len(parts) - 1))


def _lines(inventory: Inventory) -> Iterator[str]:
    for contents in inventory.contents:
        yield str(contents)
    counts, samples = inventory.languages, inventory.samples
    yield (
        f"usable: {len(samples)} pictures with {sum(counts.values())} captions ({counts['zh']} Chinese, "
        f"{counts['en']} English, {counts['other']} other); an epoch shows {inventory.pictures_an_epoch}"
    )
    for dataset, kinds in count_kinds(samples).items():
        shares = (f"{kind} {c.share:.0%} ({c.captions} of {c.pictures} pictures)" for kind, c in kinds.items())
        yield f"captions by share in {dataset}: {', '.join(shares)}"
    if masked := Counter(sample.mask.dataset for sample in samples if sample.mask is not None):
        yield "masked loss: " + ", ".join(f"{count} pictures by masks of {name}" for name, count in masked.items())
    if paired := Counter(sample.reference.file.dataset for sample in samples if sample.reference is not None):
        yield "pairs: " + ", ".join(f"{count} pictures edited from those of {name}" for name, count in paired.items())
    if prior := sum(sample.is_prior for sample in samples):
        yield f"regularisation: {prior} of these pictures have the base's own prediction as their target"
    if inventory.held_out:
        yield f"held out, to measure the loss: {len(inventory.held_out)} pictures"
    if inventory.trigger_words:
        yield f"trigger words: {', '.join(inventory.trigger_words)}"
    if inventory.buckets:
        yield "buckets:"
        yield from (f"  {bucket!s:>11}  {count}" for bucket, count in sorted(inventory.buckets.items()))
    if inventory.dropped:
        yield f"dropped: {len(inventory.dropped)}"
        yield from (
            f"  {drop.dataset}: {drop.key}: {drop.problem.clause}" for drop in inventory.dropped[:_DROPPED_SHOWN]
        )
        rest = inventory.dropped[_DROPPED_SHOWN:]
        if rest:
            where = ", ".join(f"{count} of {name}" for name, count in Counter(drop.dataset for drop in rest).items())
            yield f"  and {len(rest)} more ({where}), in the report file"
    if inventory.warnings:
        yield "warnings:"
        yield from (f"  {warning}" for warning in inventory.warnings)


def _spread(samples: tuple[Sample, ...], most: int) -> list[Sample]:
    """Return up to ``most`` samples in order, chosen at random: even distances would coincide with data that alternates."""
    count = min(len(samples), most)
    return [samples[place] for place in sorted(random.Random(count).sample(range(len(samples)), count))]


def _cell(sample: Sample, width: int, height: int, font: Font) -> Image.Image:
    cell = Image.new("RGB", (width, height), "#ffffff")
    draw = ImageDraw.Draw(cell)
    try:
        thumbnail = _shown(sample)
        thumbnail.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
        cell.paste(thumbnail, ((width - thumbnail.width) // 2, _MARGIN_PX + (_THUMBNAIL_PX - thumbnail.height) // 2))
        captions = list(sample.captions)
    except DataError as error:  # removed since the scan: shown in its place
        captions = [str(error)]
    name = Path(sample.key).name
    texts = [f"{name} {sample.bucket}", *captions]
    lines = [line for text in texts for line in wrapped(drawable(text[:_MOST_CHARACTERS], font), font, _THUMBNAIL_PX)]
    for number, line in enumerate(lines[:_LINES]):
        at = (_MARGIN_PX, _MARGIN_PX + _THUMBNAIL_PX + 4 + number * _LINE_PX)
        draw.text(at, line, fill="#808080" if number == 0 else "#000000", font=font)
    return cell


def _shown(sample: Sample) -> Image.Image:
    """Return a sample's picture; of a pair, the picture that it is edited from on its left."""
    picture = Image.fromarray(read_pixels(sample))
    if sample.reference is None:
        return picture
    both = Image.new("RGB", (2 * picture.width + _MARGIN_PX, picture.height), "#ffffff")
    both.paste(Image.fromarray(read_reference(sample.reference).pixel_array), (0, 0))
    both.paste(picture, (picture.width + _MARGIN_PX, 0))
    return both


def wrapped(text: str, font: Font, width_px: int) -> list[str]:
    """Break a text into lines of that width, at spaces if there are any."""
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
    """Return True if the font has a glyph of its own for a character, not the box for characters that it lacks."""
    return _mask(char, font) != _mask(_NO_CHARACTER, font)


@lru_cache(maxsize=4096)
def _mask(char: str, font: Font) -> bytes:
    return bytes(font.getmask(char))
