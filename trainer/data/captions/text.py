"""The text of one caption: from a file's name, and without invisible ends. No torch."""

import re
from pathlib import PurePosixPath

from longcat.errors import DataError
from trainer.data.captions.shares import Caption
from trainer.data.captions.table import LINE_ENDS

_INVISIBLE_ENDS = re.compile(r"^[\s\ufeff\u200b\0]+|[\s\ufeff\u200b\0]+\Z")


def from_name(key: str) -> tuple[Caption, ...]:
    """Return the file's name without its ending, underscores as spaces; nothing if it has no letter."""
    text = PurePosixPath(key).stem.replace("_", " ")
    return (Caption(text),) if re.search(r"[^\W\d_]", text) else ()


def clean(text: str) -> str:
    """Strip invisible characters at the ends. Raises ``DataError`` for text that is not Unicode."""
    text = _INVISIBLE_ENDS.sub("", text)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            "caption_not_unicode", "a caption is not Unicode text, at character {position}", position=error.start
        ) from error
    return "\n".join(LINE_ENDS.split(text))
