"""Composed captions: languages, trigger words, tags."""

import random

import pytest

from tests.trainer.data.captions.test_captions import sample
from trainer.data.captions.compose import (
    compose_caption,
    possible_captions,
    tag_orders,
    with_trigger_words,
)
from trainer.data.captions.language import detect_language


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("a red apple", "en"),
        ("it's a well-known café", "en"),
        ("一个红苹果", "zh"),
        ("一只猫，ink style", "zh"),
        ("a sign that says “你好” in a shop window", "en"),
        ("赤いりんごの絵", "other"),
        ("красное яблоко", "other"),
        ("빨간 사과", "other"),
        ("123, 456", "other"),
        ("", "other"),
        ("𠮷野家", "zh"),
    ],
)
def test_languages(text: str, language: str) -> None:
    assert detect_language(text) == language


@pytest.mark.parametrize(
    ("caption", "words", "expected"),
    [
        ("a cat", ("ink",), "ink, a cat"),
        ("一只猫", ("ink", "版画"), "ink，版画，一只猫"),
        ("an Ink cat", ("ink",), "an Ink cat"),
        ("a drink", ("ink",), "ink, a drink"),
        ("一只猫，版画风格", ("版画",), "一只猫，版画风格"),
        ("a sks dog", ("sks dog", "c++"), "c++, a sks dog"),
        ("cat", (), "cat"),
    ],
)
def test_trigger_words_come_before_captions_that_lack_them(caption: str, words: tuple[str, ...], expected: str) -> None:
    assert with_trigger_words(caption, words) == expected


def test_tags_change_places_and_nothing_else() -> None:
    orders = tag_orders("1girl, red hair,hat, sits, sea, sky, sun", keep=2)
    assert len(orders) == len(set(orders)) == 8
    assert orders[0] == "1girl, red hair, hat, sits, sea, sky, sun"
    assert all(order.startswith("1girl, red hair, ") for order in orders)
    assert {tuple(sorted(order.split(", "))) for order in orders} == {tuple(sorted(orders[0].split(", ")))}
    assert orders == tag_orders("1girl, red hair,hat, sits, sea, sky, sun", keep=2)


@pytest.mark.parametrize(
    ("caption", "keep", "expected"),
    [
        ("猫，红色，坐着。", 1, {"猫，红色，坐着。", "猫，坐着，红色。"}),
        ("猫、红色", 0, {"猫、红色", "红色、猫"}),
        ('a, "b, c"', 0, {'a, "b, c"', '"b, c", a'}),
        ("1,000 cats, sea", 0, {"1,000 cats, sea", "sea, 1,000 cats"}),
        ("a, a", 0, {"a, a"}),
        ("a cat", 0, {"a cat"}),
        ("", 0, {""}),
    ],
)
def test_tags_between_commas_of_any_kind(caption: str, keep: int, expected: set[str]) -> None:
    assert set(tag_orders(caption, keep=keep)) == expected


def test_what_is_composed_is_what_was_embedded() -> None:
    one = sample("a, b, c, d, e", "甲，乙，丙", shuffle_tags=True, keep_tags=0, trigger_words=("ink",))
    possible = possible_captions(one)
    assert len(possible) == 8 + 6
    assert all(text.startswith("ink") for text in possible)
    assert {compose_caption(one, random.Random(seed)) for seed in range(400)} == set(possible)
    plain = sample("a, b", "甲")
    assert possible_captions(plain) == ("a, b", "甲")
    assert compose_caption(plain, random.Random(1)) == compose_caption(plain, random.Random(1))
