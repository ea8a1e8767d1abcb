import json

import pytest

from longcat.errors import ConfigError
from trainer.config.reading.json_text import parse_json


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"a": "🟫 你好"}),  # ASCII: a surrogate pair in escapes
        json.dumps({"a": "🟫 你好"})[:-1] + ", // a comment\n}",
        "\ufeff{a: '🟫 你好',}",
        '{"a": "🟫 你好"}'.encode("utf-8-sig"),
        "{a: '\\ud83d\\udfeb 你好',}",
    ],
)
def test_escaped_characters_are_the_characters(text: str | bytes) -> None:
    assert parse_json(text) == {"a": "🟫 你好"}


@pytest.mark.parametrize(
    ("text", "code", "field"),
    [
        ('{"a": {"b": ["x", "\\ud83d"]}}', "lone_surrogate", "a.b.1"),
        ('{"\\udfeb": 1}', "lone_surrogate", "\\udfeb"),
        ("{a: {b: ['x', '\\ud83d y']},}", "lone_surrogate", "a.b.1"),
        ("{a: '\\ud83d\\udfeb\\udfeb',}", "lone_surrogate", "a"),
        ("{a: '\\ud83d\\ud83d\\udfeb',}", "lone_surrogate", "a"),
        (b"{'a': 1", "text_not_json", ""),
        ('{"a": 1}'.encode("utf-16"), "json_not_utf8", ""),
        ("// 你好\n{}".encode("gbk"), "json_not_utf8", ""),
        ("[" * 200_000, "json_nested_too_deep", ""),
        ("[" * 900 + "]" * 900, "json_nested_too_deep", ""),
        ("", "text_not_json", ""),
        ("{" + "/*" * 100_000, "text_not_json", ""),
        ('{"a": "' + "\\'" * 100_000, "text_not_json", ""),
        ('{"a": 1}'.encode("utf-16-le"), "json_not_utf8", ""),
        ('{"a": {"b": "一只猫"}}'.encode("gbk"), "text_rather_gb18030", "a.b"),  # valid as UTF-8
        ('{"a": 1, "b": {"a": 1},\n"a": 2}', "key_given_twice", "a"),
        ('{a: [{"c": 1, c: 2}], // x\n}', "key_given_twice", "c"),
        ('{"a": "C:\\Users\\me"}', "escape_unknown", ""),
        ('{"a": "D:\\图片"}', "escape_unknown", ""),
        ('{"a": "D:\\users"}', "escape_unknown", ""),
        ('{"a": "D:\\new"}', "control_character", "a"),
        ('{"a": "data\\fish"}', "control_character", "a"),
        ('{"a": ' + "1" * 5000 + "}", "text_not_json", ""),
    ],
)
def test_text_that_is_no_json(text: str | bytes, code: str, field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_json(text)
    (problem,) = caught.value.problems
    assert (problem.code, problem.field) == (code, field)
    str(problem).encode()  # the message can be encoded whatever it quotes


def test_the_problem_names_line_and_column() -> None:
    with pytest.raises(ConfigError, match=r"line 3, column 4, at '\"b\": 2}'"):
        parse_json('{"a":\n // one\n 1 "b": 2}')


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": "D:\\\\new\\\\图片"}', "D:\\new\\图片"),
        ("{a: 'it\\'s \\x41', /* a: 1 */ // a: 2\n}", "it's A"),
        ('{"a": "a: 1, {a: 2}\\nb: 2"}', "a: 1, {a: 2}\nb: 2"),
        ('{"a": "café Ελλάδα"}', "café Ελλάδα"),
    ],
)
def test_text_that_only_looks_wrong_is_taken(text: str, value: str) -> None:
    assert parse_json(text) == {"a": value}
