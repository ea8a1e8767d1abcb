"""JSON as people write configurations: with comments and trailing commas. No torch."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pyjson5

from longcat.errors import ConfigError
from longcat.problem import Problem

_MOST_NESTED = 32
_OFFSET = re.compile(r"near (\d+)")
_SURROGATE = re.compile("[\ud800-\udfff]")
_LONE_ESCAPE = re.compile(
    r"(?<!\\)\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])"
    r"|(?<!\\)(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)
_REPLACED = "\ufdd0"
"""A character that no text has, in the place of half a pair, which the parser of JSON5 takes for a syntax error."""
_EXCERPT = 40


def parse_json(data: bytes | str) -> Any:
    """Parse JSON or JSON5.

    Raises ``ConfigError`` for text in another syntax or encoding, for deep nesting, and for characters that no file or
    tokenizer takes; its problem names the field.
    """
    text = data.removeprefix("\ufeff") if isinstance(data, str) else _decode(data)
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        parsed = _parse_json5(text)
    if problem := unusable_text(parsed):
        raise ConfigError.of([problem])
    return parsed


def unusable_text(parsed: Any) -> Problem | None:
    """Return the problem of the first zero byte or half of a surrogate pair in texts and keys; None if there is none.

    They come from escapes in JSON, and such halves also from arguments and variables in another encoding than UTF-8.
    """
    for field, value in _strings(parsed, ()):
        if "\0" in value:
            return Problem(
                code="zero_byte",
                template="has a zero byte, which no path or prompt can have",
                remedy_template="leave it out",
                field=".".join(field),
                value=value,
            )
        if _SURROGATE.search(value) or _REPLACED in value:
            return Problem(
                code="lone_surrogate",
                template="has half of a surrogate pair, which is no character",
                remedy_template="write the character itself, in UTF-8, instead of \\u escapes",
                field=".".join(field),
                value=value,
            )
    return None


def _strings(parsed: Any, field: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield every string, keys included, with the keys and indices that lead to it."""
    if len(field) > _MOST_NESTED:
        raise _nested_too_deep()
    if isinstance(parsed, str):
        yield field, parsed
    elif isinstance(parsed, dict):
        for key, value in parsed.items():
            yield (*field, key), key
            yield from _strings(value, (*field, key))
    elif isinstance(parsed, list | tuple):
        for index, value in enumerate(parsed):
            yield from _strings(value, (*field, str(index)))


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError("json_not_utf8", "not UTF-8", remedy="save the file as UTF-8") from error


def _parse_json5(text: str) -> Any:
    try:
        return pyjson5.decode(_LONE_ESCAPE.sub(_REPLACED, text), maxdepth=_MOST_NESTED)
    except pyjson5.Json5NestingTooDeep as error:
        raise _nested_too_deep() from error
    except (pyjson5.Json5Exception, ValueError) as error:
        offset = max(0, int(found[1]) - 1) if (found := _OFFSET.search(str(error))) else 0
        before = text[:offset]
        raise ConfigError(
            "text_not_json",
            "not JSON: line {line}, column {column}, at {excerpt!r}",
            remedy="correct it; // comments are allowed",
            line=before.count("\n") + 1,
            column=offset - before.rfind("\n"),
            excerpt=text[offset : offset + _EXCERPT].split("\n")[0],
        ) from error


def _nested_too_deep() -> ConfigError:
    return ConfigError(
        "json_nested_too_deep",
        "nested more than {most} levels deep",
        remedy="give options and lists of them",
        most=_MOST_NESTED,
    )
