"""Regular expressions that validate: in Python ``$`` also matches before a final newline, so that ``ink\n`` would pass."""

import ast

import pytest

from tests import ROOT

_FUNCTIONS = ("compile", "match", "search", "fullmatch", "findall", "finditer", "split", "sub")


def dollars(source: str) -> list[int]:
    """Return the lines on which a pattern ends an alternative with ``$`` and is not multi-line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _FUNCTIONS):
            continue
        if not (isinstance(node.func.value, ast.Name) and node.func.value.id == "re" and node.args):
            continue
        constants = [part.value for part in ast.walk(node.args[0]) if isinstance(part, ast.Constant)]
        pattern = "".join(part for part in constants if isinstance(part, str))
        is_multi_line = "MULTILINE" in ast.unparse(node)
        if not is_multi_line and any(alternative.endswith("$") for alternative in pattern.split("|")):
            found.append(node.lineno)
    return found


def test_dollars_are_found() -> None:
    assert dollars('import re\nre.compile(r"^a$")\nre.match(rf"a{b}$", c)\nre.compile(r"a\\Z|b$")') == [2, 3, 4]
    assert dollars('import re\nre.compile(r"a\\Z")\nre.compile(r"^a$", re.MULTILINE)\nre.fullmatch("a", b)') == []


@pytest.mark.parametrize("folder", ["lithograph", "longcat", "service", "studio", "trainer"])
def test_no_pattern_lets_a_final_newline_pass(folder: str) -> None:
    allowed = {"longcat/adapter/foreign/patterns.py"}  # as PEFT matches a module's name
    for path in sorted((ROOT / folder).rglob("*.py")):
        if path.relative_to(ROOT).as_posix() not in allowed:
            assert dollars(path.read_text(encoding="utf-8")) == [], path
