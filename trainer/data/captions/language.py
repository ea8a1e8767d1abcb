"""The language of a caption. No torch."""

import re
from typing import Literal

Language = Literal["zh", "en", "other"]

_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_LATIN_WORD = re.compile(r"[A-Za-zÀ-ÖØ-öø-ɏ]+(?:['’-][A-Za-zÀ-ÖØ-öø-ɏ]+)*")
_LETTER = re.compile(r"[^\W\d_]")
_KANA_OR_HANGUL = re.compile(r"[\u3040-\u30ff\u1100-\u11ff\uac00-\ud7af]")


def detect_language(text: str) -> Language:
    """Return the language that most of a text is in. Any text in Latin letters counts as English.

    A Chinese character counts as much as an English word.
    """
    han, kana, words = (len(pattern.findall(text)) for pattern in (_HAN, _KANA_OR_HANGUL, _LATIN_WORD))
    others = len(_LETTER.findall(text)) - han - kana - sum(map(len, _LATIN_WORD.findall(text)))
    if 5 * kana > han + kana or others > max(han, words):
        return "other"
    if han:
        return "zh" if han >= words else "en"
    return "en" if words else "other"


def put_before(start: str, caption: str) -> str:
    """Join two texts with the comma of the caption's language."""
    comma = "，" if detect_language(caption) == "zh" else ", "
    return f"{start}{comma}{caption}"
