"""A picture's captions, in the text file beside it: read as the trainer reads them, written whole. No torch."""

import unicodedata
from pathlib import Path

from longcat.errors import DataError
from trainer.atomic import write_atomically
from trainer.caption_files import decode_text

MOST_CHARACTERS = 20_000
_MOST_BYTES = 2**20


def caption_file(picture: Path) -> Path:
    """The text file of a picture, there or not: the name's, also in other case or Unicode form, or ``NAME.png.txt``."""
    wanted = picture.with_suffix(".txt")
    by_name = {_same(entry.name): entry for entry in sorted(picture.parent.iterdir()) if entry.suffix.lower() == ".txt"}
    return by_name.get(_same(wanted.name)) or by_name.get(_same(picture.name + ".txt")) or wanted


def read_captions(picture: Path) -> str:
    """All of them, one a line; empty if there are none. Raises ``DataError`` if the file is no text."""
    path = caption_file(picture)
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise DataError(f"{path.name} is too long for captions: more than {_MOST_BYTES:,} bytes")
        return decode_text(path.read_bytes())[0].strip("\ufeff\r\n")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise DataError(f"{path.name} cannot be read: {error.strerror or error}") from error


def write_captions(picture: Path, text: str) -> None:
    """Replace them. Raises ``DataError`` for a text that no caption can be, ``StorageError`` if the disk refuses."""
    lines = [line.strip() for line in text.replace("\0", "").splitlines()]
    said = "\n".join(line for line in lines if line)
    if len(said) > MOST_CHARACTERS:
        raise DataError(f"the caption has {len(said):,} characters; give at most {MOST_CHARACTERS:,}")
    try:
        content = (said + "\n").encode() if said else b""
    except UnicodeEncodeError as error:
        raise DataError(f"the caption is no Unicode text, at character {error.start}") from error
    write_atomically(caption_file(picture), content)


def _same(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
