"""JSON as people write configurations: with comments and trailing commas. No torch."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pyjson5

from longcat.errors import ConfigError
from longcat.problem import Problem
from trainer.config.reading.text_encoding import is_rather_gb18030

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
_TOKEN = re.compile(
    r"""//[^\n\r\u2028\u2029]*|/\*.*?(?:\*/|\Z)|"(?:\\.|[^"\\])*"?|'(?:\\.|[^'\\])*'?|[][{}:,]|[^][{}:,\s"'/]+""",
    re.DOTALL,
)
"""Comments, strings, marks and words; what is not closed goes to the end, so that the time is linear in the text."""
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|.)", re.DOTALL)
_ESCAPED = frozenset("\\\"'/bfnrtv0\r\n\u2028\u2029")
"""Characters after a backslash in JSON5, which leaves any other backslash out: that of the path "D:\\pictures"."""
_CONTROL = re.compile(r"[\x01-\x08\x0b\x0c\x0e-\x1f]|^[A-Za-z]:[\t\n\r]")
"""Characters of no text. "D:\\new" has the end of a line in place of a backslash."""


def parse_json(data: bytes | str) -> Any:
    """Parse JSON or JSON5.

    Raises ``ConfigError`` for text in another syntax or encoding, for deep nesting, for keys that are given twice, and for
    characters that no file or tokenizer takes; its problem names the field.
    """
    text = data.removeprefix("\ufeff") if isinstance(data, str) else _decode(data)
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        parsed = _parse_json5(text)
    if problem := _lost_text(text) or unusable_text(parsed):
        raise ConfigError.of([problem])
    return parsed


def unusable_text(parsed: Any) -> Problem | None:
    """Return the problem of the first text or key that cannot be meant; None if there is none.

    Zero bytes, control characters and halves of surrogate pairs come from escapes in JSON, and such halves also from
    arguments and variables in another encoding than UTF-8.
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
        if found := _CONTROL.search(value):
            return Problem(
                code="control_character",
                template="has the control character {character}, which no path or prompt can have",
                remedy_template="leave it out; in JSON, write the backslashes of a path as \\\\, or / in their place",
                field=".".join(field),
                value=json.dumps(value, ensure_ascii=False)[1:-1],
                details={"character": json.dumps(found[0][-1])[1:-1]},
            )
        if is_rather_gb18030(value):
            return Problem(
                code="text_rather_gb18030",
                template="not UTF-8: Chinese text in GB18030, by its bytes",
                remedy_template="save the file as UTF-8",
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


def _lost_text(text: str) -> Problem | None:
    """Return the problem of the first key that an object has twice, or backslash that its string would lose."""
    objects: list[set[str]] = [set()]
    before = ""
    for token in _TOKEN.finditer(text):
        match token[0][:1]:
            case "{" | "[":
                objects.append(set())
            case "}" | "]" if len(objects) > 1:
                objects.pop()
            case "/":
                continue
            case ":" if (key := _text_of(before)) in objects[-1]:
                return Problem(
                    code="key_given_twice", template="given twice, the second time in line {line}",
                    remedy_template="leave out one of the two", field=key,
                    details={"line": text.count("\n", 0, token.start()) + 1},
                )  # fmt: skip
            case ":":
                objects[-1].add(key)
            case '"' | "'" if unknown := [
                end for end in _ESCAPE.findall(token[0]) if len(end) == 1 and end not in _ESCAPED
            ]:
                return Problem(
                    code="escape_unknown", template="line {line}: {escape} is no escape of JSON",
                    remedy_template="write a backslash as \\\\; in a path, / does as well",
                    details={"line": text.count("\n", 0, token.start()) + 1, "escape": f"\\{unknown[0]}"},
                )  # fmt: skip
        before = token[0]
    return None


def _text_of(key: str) -> str:
    try:
        return str(pyjson5.decode(key))
    except pyjson5.Json5Exception:  # a key without quotation marks
        return key


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
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf8() from error
    if "\0" in text:  # UTF-16 without a byte order mark
        raise _not_utf8()
    return text


def _not_utf8() -> ConfigError:
    return ConfigError("json_not_utf8", "not UTF-8", remedy="save the file as UTF-8")


def _parse_json5(text: str) -> Any:
    try:
        return pyjson5.decode(_LONE_ESCAPE.sub(_REPLACED, text), maxdepth=_MOST_NESTED)
    except pyjson5.Json5NestingTooDeep as error:
        raise _nested_too_deep() from error
    except (pyjson5.Json5Exception, ValueError) as error:
        if problem := _lost_text(text):  # the reason, in "C:\\Users"
            raise ConfigError.of([problem]) from error
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
