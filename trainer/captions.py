"""Captions as a training sees them: their language, trigger words, tags in another order. No torch."""

import hashlib
import itertools
import random
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from longcat.prompt import split_quoted

if TYPE_CHECKING:
    from trainer.inventory import Sample

Language = Literal["zh", "en", "other"]

MOST_ORDERS = 8
"""Orders of a caption's tags that are drawn from: every one is embedded ahead and kept on disk."""

_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_LATIN_WORD = re.compile(r"[A-Za-zÀ-ÖØ-öø-ɏ]+(?:['’-][A-Za-zÀ-ÖØ-öø-ɏ]+)*")
_LETTER = re.compile(r"[^\W\d_]")
_KANA_OR_HANGUL = re.compile(r"[\u3040-\u30ff\u1100-\u11ff\uac00-\ud7af]")
_COMMA = re.compile(r"(?<!\d),|,(?!\d)|[，、]")
"""Between tags. A comma between digits belongs to a number."""
_FULL_STOPS = ".。"


def detect_language(text: str) -> Language:
    """The language that most of a text is in. Whatever is in Latin letters counts as English.

    A Chinese character weighs as much as an English word.
    """
    han, kana, words = (len(pattern.findall(text)) for pattern in (_HAN, _KANA_OR_HANGUL, _LATIN_WORD))
    others = len(_LETTER.findall(text)) - han - kana - sum(map(len, _LATIN_WORD.findall(text)))
    if 5 * kana > han + kana or others > max(han, words):
        return "other"
    if han:
        return "zh" if han >= words else "en"
    return "en" if words else "other"


def put_before(start: str, caption: str) -> str:
    """Two texts with the comma of the caption's language between them."""
    comma = "，" if detect_language(caption) == "zh" else ", "
    return f"{start}{comma}{caption}"


def possible_captions(sample: "Sample") -> tuple[str, ...]:
    """Every text that ``compose_caption`` can give."""
    return tuple(
        dict.fromkeys(itertools.chain.from_iterable(_variants(sample, caption) for caption in sample.captions))
    )


def compose_caption(sample: "Sample", rng: random.Random) -> str:
    """One of the sample's captions, with trigger words, its tags in one of their orders."""
    return rng.choice(_variants(sample, rng.choice(sample.captions)))


def with_trigger_words(caption: str, trigger_words: Sequence[str]) -> str:
    """The caption with those words before it that it lacks."""
    for word in reversed(trigger_words):
        if not _has_word(caption, word):
            caption = put_before(word, caption)
    return caption


def tag_orders(caption: str, *, keep: int) -> tuple[str, ...]:
    """The caption's tags in up to ``MOST_ORDERS`` orders, the given one first; the first ``keep`` tags stay.

    Which orders follows from the text alone. Commas within quotation marks separate nothing.
    """
    stop = caption[-1] if caption[-1:] and caption[-1] in _FULL_STOPS else ""
    tags, comma = _split_tags(caption.removesuffix(stop) if stop else caption)
    start, rest = tags[:keep], tags[keep:]
    if len(rest) < 2:
        return (caption,)
    orders: dict[tuple[str, ...], None] = {tuple(rest): None}
    if len(rest) <= 3:
        orders |= dict.fromkeys(itertools.permutations(rest))
    else:
        rng = random.Random(hashlib.sha256(caption.encode()).digest())  # noqa: S311
        for _ in range(4 * MOST_ORDERS):  # tags that occur twice have fewer orders
            if len(orders) < MOST_ORDERS:
                orders[tuple(rng.sample(rest, len(rest)))] = None
    return tuple(comma.join((*start, *order)) + stop for order in orders)


def _variants(sample: "Sample", caption: str) -> tuple[str, ...]:
    config = sample.config
    orders = tag_orders(caption, keep=config.keep_tags) if config.shuffle_tags else (caption,)
    return tuple(with_trigger_words(order, config.trigger_words) for order in orders)


def _split_tags(caption: str) -> tuple[list[str], str]:
    """The tags, and the comma that joins them again: the caption's first."""
    tags, commas = [""], []
    for text, is_quoted in split_quoted(caption):
        if is_quoted:
            tags[-1] += text
            continue
        commas += _COMMA.findall(text)
        first, *others = _COMMA.split(text)
        tags[-1] += first
        tags += others
    comma = commas[0] if commas else ","
    return [tag.strip() for tag in tags if tag.strip()], ", " if comma == "," else comma


def _has_word(caption: str, word: str) -> bool:
    """Whether it occurs; a word in Latin letters not as a part of another (``ink`` in ``drink``)."""
    before = r"(?<![0-9A-Za-z_])" if re.match(r"[0-9A-Za-z_]", word) else ""
    after = r"(?![0-9A-Za-z_])" if re.search(r"[0-9A-Za-z_]$", word) else ""
    return re.search(before + re.escape(word) + after, caption, re.IGNORECASE) is not None
