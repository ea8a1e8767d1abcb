"""Captions in the text file beside a picture: read as the trainer reads them, written atomically. No torch."""

import unicodedata
from pathlib import Path

from longcat.errors import DataError
from longcat.problem import reason_of
from longcat.storage.atomic import write_atomically
from trainer.config.reading.text_encoding import decode_text

MOST_CHARACTERS = 20_000
_MOST_BYTES = 2**20


def caption_file(picture: Path) -> Path:
    """Return a picture's caption file, existing or not: ``NAME.txt`` in any case or Unicode form, or ``NAME.png.txt``."""
    by_name = {_same(entry.name): entry for entry in sorted(picture.parent.iterdir())}
    names = [
        name for ending in (".txt", ".caption") for name in (picture.with_suffix(ending).name, picture.name + ending)
    ]
    return next((found for name in names if (found := by_name.get(_same(name)))), picture.with_suffix(".txt"))


def read_captions(picture: Path) -> str:
    """Return the captions, one a line; empty if there are none. Raises ``DataError`` if the file is not text."""
    path = caption_file(picture)
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise DataError(
                "caption_file_over_limit", "more than {limit} bytes", remedy="shorten it",
                field="file", value=path.name, limit=_MOST_BYTES,
            )  # fmt: skip
        return decode_text(path.read_bytes()).text.strip("\ufeff\r\n")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> DataError:
    """Return the error of a dataset's file that cannot be read."""
    return DataError(
        "dataset_file_unreadable", "cannot be read: {reason}", field="file", value=path.name, reason=reason_of(error)
    )


def write_captions(picture: Path, text: str) -> None:
    """Replace the captions. Raises ``DataError`` for an invalid text, ``StorageError`` if it cannot be written."""
    write_atomically(caption_file(picture), caption_lines(text))


def caption_lines(text: str) -> bytes:
    """Return the content of a caption file, one caption a line. Raises ``DataError`` for a text that no caption can be."""
    lines = [line.strip() for line in text.replace("\0", "").splitlines()]
    text = "\n".join(line for line in lines if line)
    if len(text) > MOST_CHARACTERS:
        raise DataError(
            "caption_over_limit", "has {length} characters", remedy="give at most {limit}",
            field="caption", length=len(text), limit=MOST_CHARACTERS,
        )  # fmt: skip
    try:
        return (text + "\n").encode() if text else b""
    except UnicodeEncodeError as error:
        raise DataError(
            "typed_caption_not_unicode", "character {position} is not valid Unicode", remedy="remove it",
            field="caption", position=error.start,
        ) from error  # fmt: skip


def _same(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
