"""Captions of a training: the one that is shown, its trigger words, the order of its tags. No torch."""

import hashlib
import itertools
import random
import re
from collections.abc import Sequence

from longcat.sampling.prompt import split_quoted
from trainer.data.captions.language import put_before
from trainer.data.captions.shares import choose
from trainer.data.sample import Sample

MOST_ORDERS = 8
"""Most orders of a caption's tags: every one is embedded ahead of training and kept on disk."""

_COMMA = re.compile(r"(?<!\d),|,(?!\d)|[，、]")
"""A comma between tags. A comma between digits belongs to a number."""
_FULL_STOPS = ".。"


def possible_captions(sample: Sample) -> tuple[str, ...]:
    """Return every text that ``compose_caption`` can return."""
    return tuple(
        dict.fromkeys(itertools.chain.from_iterable(_variants(sample, caption) for caption in sample.captions))
    )


def compose_caption(sample: Sample, rng: random.Random) -> str:
    """Return one of the sample's captions, by its share, with trigger words, its tags in one of their orders."""
    return rng.choice(_variants(sample, choose(sample, rng)))


def with_trigger_words(caption: str, trigger_words: Sequence[str]) -> str:
    """Put before the caption those trigger words that it lacks."""
    for word in reversed(trigger_words):
        if not _has_word(caption, word):
            caption = put_before(word, caption)
    return caption


def tag_orders(caption: str, *, keep: int) -> tuple[str, ...]:
    """Return the caption with its tags in up to ``MOST_ORDERS`` orders, the given one first; the first ``keep`` tags stay.

    The orders follow from the text alone. Commas within quotation marks do not separate tags.
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
        rng = random.Random(hashlib.sha256(caption.encode()).digest())
        for _ in range(4 * MOST_ORDERS):  # tags that occur twice have fewer orders
            if len(orders) < MOST_ORDERS:
                orders[tuple(rng.sample(rest, len(rest)))] = None
    return tuple(comma.join((*start, *order)) + stop for order in orders)


def _variants(sample: Sample, caption: str) -> tuple[str, ...]:
    config = sample.config
    orders = tag_orders(caption, keep=config.keep_tags) if config.shuffle_tags else (caption,)
    return tuple(with_trigger_words(order, config.trigger_words) for order in orders)


def _split_tags(caption: str) -> tuple[list[str], str]:
    """Return the tags, and the comma that joins them again: the first in the caption."""
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
    """Return True if the word occurs; a word in Latin letters not as a part of another (``ink`` in ``drink``)."""
    before = r"(?<![0-9A-Za-z_])" if re.match(r"[0-9A-Za-z_]", word) else ""
    after = r"(?![0-9A-Za-z_])" if re.search(r"[0-9A-Za-z_]\Z", word) else ""
    return re.search(before + re.escape(word) + after, caption, re.IGNORECASE) is not None
