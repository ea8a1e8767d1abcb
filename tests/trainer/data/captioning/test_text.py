"""Replies of a captioning model: captions are taken, and nothing else is."""

import pytest

from longcat.errors import DataError
from trainer.data.captioning.text import checked_caption


@pytest.mark.parametrize(
    ("reply", "caption"),
    [
        ("a red apple\non a table", "a red apple on a table"),
        ('"A cat."', "A cat."),
        ("“A cat.”", "A cat."),
        ('"STOP" on a sign beside "GO"', '"STOP" on a sign beside "GO"'),
        ("<think>\nThe user wants…\n</think>\n\nA cat", "A cat"),
        ("I can see a cat", "I can see a cat"),
    ],
)
def test_a_caption_is_taken_without_what_surrounds_it(reply: str, caption: str) -> None:
    assert checked_caption(reply, "en") == caption


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        ("I'm sorry, I can't help with that.", "caption_reply_refused"),
        ("I cannot describe people.", "caption_reply_refused"),
        ("As an AI model, I", "caption_reply_refused"),
        ('{"caption": "a cat"}', "caption_reply_markup"),
        ("```\na cat\n```", "caption_reply_markup"),
        ("<think> I wonder", "caption_reply_markup"),
        ("<think>a cat</think>", "caption_reply_empty"),
        ('""', "caption_reply_empty"),
    ],
)
def test_a_reply_that_is_no_caption_is_refused(reply: str, code: str) -> None:
    with pytest.raises(DataError) as caught:
        checked_caption(reply, "en")
    assert caught.value.problems[0].code == code


@pytest.mark.parametrize("reply", ["很抱歉，我无法描述这张图片。", "抱歉，图片不清楚", "作为一个AI，我不能"])
def test_a_refusal_in_chinese(reply: str) -> None:
    with pytest.raises(DataError, match="the model refused"):
        checked_caption(reply, "zh")
