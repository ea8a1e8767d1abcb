"""Strategies: strange texts, numbers, JSON values and bytes, and valid files with something broken in them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from hypothesis import strategies as st

_T = TypeVar("_T")


ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 64, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**400 + 1, -(10**400),
    10**4_300 - 1, 0.0, -0.0, 0.5, 5e-324,
    1e308, -1e308, float("nan"), float("inf"), -float("inf"), "", " ", "a", "\x00", "\ud800", "\udc80x",
    "x" * 5_000, "\n", "1", "1e999",
    "NaN", "9" * 5_000, "{0}", "%s", "~nosuchuser/x", "[", "http://[", "a\nb", "é", "😀", [], [None], [[]],
    [1] * 3, {}, {"a": 1}, {"": {}},
    [{}] * 2, ["a", "a"], {"\ud800": "\ud800"},
)  # fmt: skip
"""Values with which every field is tested once."""


def one_of_these(items: Sequence[_T]) -> st.SearchStrategy[_T]:
    """Return ``sampled_from`` with a short representation: Hypothesis warns about those of long items."""
    return st.integers(0, len(items) - 1).map(lambda index: items[index])


TEXTS = st.one_of(
    st.text(max_size=40),
    one_of_these([
        "", " ", "a cat", "一只猫", "\x00", "\ud800", "'", "“猫", "x" * 5_000, "\n", "\u202e", "{}", "{0}", "%s",
        "../../etc/passwd",
        "~nosuchuser/x", "[", "//[", "file:///", "null", "NaN", "1e999", "é", "e\u0301", "ﬀ", "😀" * 300,
        '"' * 2_000, "\\", "$(id)",
        "{{7*7}}", "<script>", "a\r\nb: c", "9" * 5_000, "-0", "0x10", "1_000", "٣",
    ]),
)  # fmt: skip
UNICODE = TEXTS.map(lambda text: text.encode("utf-8", "replace").decode("utf-8"))
"""Texts without lone surrogates."""
INTEGERS = st.one_of(
    st.integers(-2, 130),
    st.integers(),
    one_of_these([2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**400 + 1, -(10**400), 10**4_299, 10**4_300 - 1]),
)
FLOATS = st.one_of(
    st.floats(),
    st.sampled_from([float("nan"), float("inf"), -float("inf"), 1e308, -1e308, 5e-324, 1e-320, -0.0, 0.1, 1e16]),
)
NUMBERS = st.one_of(INTEGERS, FLOATS)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6,
)


def deep(opening: str, closing: str, depth: int, inside: str = "1") -> bytes:
    """Return nested JSON."""
    return (opening * depth + inside + closing * depth).encode()


RAW_JSON = one_of_these([
    b"", b" ", b"null", b"true", b"0", b'""', b"[]", b"{}", b"NaN", b"-Infinity", b"{", b"[1,]", b"{'a':1}",
    b'{"a":1}x', b"\x00",
    b"\xef\xbb\xbf{}", b"\xef\xbb\xbf", b"\xff\xfe{\x00}\x00", b"\xfe\xff\x00{\x00}", b"\xff\xfe\x00\x00",
    b"\xc3\x28", b"\x1f\x8b\x08",
    b'"\\ud800"', b'{"\\ud800": 1}', b'"\xed\xa0\x80"', b"1e999999", b"-1e-999999", b"1" * 5_000,
    b"[" + b"1," * 20_000 + b"1]",
    deep("[", "]", 100), deep("[", "]", 5_000), deep("[", "]", 100_000), b"[" * 100_000, deep('{"a":', "}", 5_000),
    deep('{"a":', "}", 100_000), b'{"a":' * 100_000, b'{"a": 1, "a": 2}', b"/*", b"//\n{}", b"{// x\n}", b'{"\\u0000": 1}',
])  # fmt: skip
"""JSON on which parsers disagree, and invalid JSON."""


def as_json(value: Any) -> bytes:
    """Return JSON as Python writes it, with NaN and escaped lone surrogates."""
    return json.dumps(value).encode()


def _encodings(text: str) -> st.SearchStrategy[bytes]:
    return st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "gb18030", "utf-7"]).map(
        lambda encoding: text.encode(encoding, "replace")
    )


@st.composite
def broken(draw: st.DrawFn, contents: st.SearchStrategy[bytes]) -> bytes:
    """Return content with up to three changes: bytes flipped, set, removed, repeated or inserted, or its end cut off."""
    content = bytearray(draw(contents))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(content)))
        length = draw(st.sampled_from([1, 2, 4, 8, 64, 1000]))
        match draw(st.sampled_from(["flip", "set", "cut", "repeat", "insert", "end"])):
            case "flip" if at < len(content):
                content[at] ^= 1 << draw(st.integers(0, 7))
            case "set":
                content[at : at + length] = bytes([draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))]) * length
            case "cut":
                del content[at : at + length]
            case "repeat":
                content[at:at] = content[at : at + length] * draw(st.sampled_from([1, 2, 50]))
            case "insert":
                content[at:at] = draw(st.binary(max_size=20))
            case "end":
                del content[at:]
    return bytes(content)


def json_bytes(objects: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    """Return JSON of the objects: unchanged, in other encodings, with a repeated field, or broken; or raw bytes."""
    written = objects.map(as_json)
    return st.one_of(
        written,
        broken(written),
        objects.flatmap(lambda value: _encodings(json.dumps(value))),
        written.map(lambda text: text[:-1] + b"," + text[1:] if text.startswith(b'{"') else text),  # each field twice
        st.tuples(written, RAW_JSON).map(lambda pair: b'{"a": ' + pair[1] + b"}" if pair[0] == b"{}" else _with(*pair)),
        RAW_JSON,
        st.binary(max_size=200),
    )


def _with(text: bytes, value: bytes) -> bytes:
    """Put raw JSON in place of an object's first value."""
    name, colon, _ = text.partition(b":")
    return name + colon + b" " + value + b"}" if colon else value


@st.composite
def changed(draw: st.DrawFn, valid: dict[str, Any], likely: dict[str, st.SearchStrategy[Any]]) -> dict[str, Any]:
    """Return an object with up to three fields set to likely or strange values, one left out, or an unknown one added."""
    fields = dict(valid)
    names = sorted({*valid, *likely})
    for name in draw(st.lists(st.sampled_from(names), max_size=3, unique=True)):
        fields[name] = draw(st.one_of(likely.get(name, SCALARS), likely.get(name, VALUES), VALUES))
    match draw(st.integers(0, 9)):
        case 0 if fields:
            del fields[draw(st.sampled_from(sorted(fields)))]
        case 1:
            fields[draw(TEXTS)] = draw(VALUES)
    return fields


def replaced(value: Any, parts: Mapping[str, Any], path: str = "") -> Any:
    """Return nested objects with the fields at some paths replaced."""
    if path in parts:
        return parts[path]
    if not isinstance(value, dict):
        return value
    return {key: replaced(inner, parts, f"{path}.{key}" if path else key) for key, inner in value.items()}


def paths_in(value: Any, path: str = "") -> list[str]:
    """Return the paths of all fields of nested objects."""
    if not isinstance(value, dict):
        return []
    here = [f"{path}.{key}" if path else str(key) for key in value]
    return [
        *here,
        *(found for name, inner in zip(here, value.values(), strict=True) for found in paths_in(inner, name)),
    ]


@st.composite
def changed_within(draw: st.DrawFn, valid: dict[str, Any], values: st.SearchStrategy[Any] = VALUES) -> dict[str, Any]:
    """Return a valid nested object with one or two fields, at any depth, replaced."""
    chosen = draw(st.lists(st.sampled_from(paths_in(valid)), min_size=1, max_size=2, unique=True))
    return dict(replaced(valid, {path: draw(values) for path in chosen}))
