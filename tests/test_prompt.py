import unicodedata

import pytest
from diffusers.pipelines.longcat_image.pipeline_longcat_image import split_quotation
from hypothesis import given
from hypothesis import strategies as st

from longcat.errors import PromptTooLongError
from longcat.loading import Components
from longcat.prompt import split_quoted, tokenize_body, tokenize_prompt
from longcat.tokenizer import plain_ids

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
    with pytest.raises(PromptTooLongError, match="has 40 tokens; the model reads at most 32: shorten it"):
        tokenize_prompt("猫" * 40, plain_ids(model.tokenizer), max_tokens=32)
