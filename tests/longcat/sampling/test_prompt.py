import unicodedata

import pytest
from diffusers.pipelines.longcat_image.pipeline_longcat_image import split_quotation
from hypothesis import given
from hypothesis import strategies as st

from longcat.errors import PromptTooLongError
from longcat.model.loading import Components
from longcat.model.tokenizer import plain_ids
from longcat.sampling.prompt import (
    _MOST_CHARACTERS_PER_TOKEN,
    least_tokens,
    split_quoted,
    tokenize_body,
    tokenize_prompt,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(TEXT)
def test_parts_make_up_the_prompt(prompt: str) -> None:
    assert "".join(text for text, _ in split_quoted(prompt)) == prompt


@pytest.mark.parametrize(
    "prompt",
    [
        "Please write 'Hello' on the blackboard for me.",
        '一张海报，上面写着"新年快乐"和“大吉”',
        "写着‘你好’的牌子, and \"two\" 'three'",
        "no quotes at all",
        "an 'unclosed one",
        "''",
        "it's a sign that says 'open'",
    ],
)
def test_quoted_parts_are_those_of_diffusers(prompt: str) -> None:
    assert split_quoted(prompt) == split_quotation(prompt)


def test_contractions_are_not_quotes_and_stay_whole() -> None:
    # diffusers' split_quotation turns this into "that's bark" somewhere, depending on PYTHONHASHSEED.
    prompt = "that's happy, it doesn't bark"
    assert split_quoted(prompt) == [(prompt, False)]
    assert split_quoted("rock'n'roll isn't 'it's fine' is it") == [
        ("rock'n'roll isn't ", False),
        ("'it's fine'", True),
        (" is it", False),
    ]


def test_quoted_text_is_tokenised_per_character(model: Components) -> None:
    tokenize = plain_ids(model.tokenizer)
    whole, split = tokenize("apple"), tokenize_body("'apple'", tokenize)
    assert len(whole) < len("apple")
    assert split == [i for character in "'apple'" for i in tokenize(character)]


@given(prompt=TEXT)
def test_tokenizer_round_trips_any_text(model: Components, prompt: str) -> None:
    composed = unicodedata.normalize("NFC", prompt)
    ids = model.tokenizer(composed, add_special_tokens=False)["input_ids"]
    assert model.tokenizer.decode(ids) == composed


def test_too_long_a_prompt_is_refused_with_its_length(model: Components) -> None:
    with pytest.raises(PromptTooLongError, match="reads at most 32; shorten it by at least 8 tokens"):
        tokenize_prompt("猫" * 40, plain_ids(model.tokenizer), max_tokens=32)


@given(prompt=TEXT, quotes=st.sampled_from(["", "'", '"', "“", "‘"]), repeat=st.sampled_from([1, 2, 50]))
def test_the_bound_from_the_characters_refuses_no_prompt_that_fits(
    model: Components, prompt: str, quotes: str, repeat: int
) -> None:
    prompt = f"{quotes}{prompt}{quotes}" * repeat
    tokens = len(tokenize_body(prompt, plain_ids(model.tokenizer)))
    for max_tokens in (1, 32, 10_000):
        least = least_tokens(prompt, max_tokens=max_tokens)
        assert least <= tokens


def test_no_token_stands_for_more_characters_than_the_bound_assumes(model: Components) -> None:
    longest = max(len(token) for token in model.tokenizer.get_vocab())  # a character for each byte
    composed = max(len(unicodedata.normalize("NFD", chr(code))) for code in range(0x110000))
    assert longest * composed <= _MOST_CHARACTERS_PER_TOKEN
    assert 128 * composed <= _MOST_CHARACTERS_PER_TOKEN, "Qwen2's longest token"


@pytest.mark.parametrize("prompt", ['"' + "a" * 61_000 + '"', "' " + "a'" * 25_000, "'a '" * 20_000, "猫" * 40_000])
def test_a_prompt_of_far_too_many_characters_is_refused_without_a_tokenizer(prompt: str) -> None:
    def tokenize(text: str) -> list[int]:
        raise AssertionError(f"{len(text)} characters are tokenized")

    with pytest.raises(PromptTooLongError, match=r"has at least \d+ tokens; the model reads at most 32"):
        tokenize_prompt(prompt, tokenize, max_tokens=32)
