"""Every problem in the source has a stable code, literal templates, and a Chinese form with the same placeholders."""

import ast
import functools
import json
import pickle
import re
import string
from collections.abc import Iterator
from pathlib import Path

import pytest

from longcat.errors import ConfigError, LithographError, PromptTooLongError, UserError
from longcat.problem import Problem, show
from longcat.validation import _TEMPLATES
from tests import ROOT

PACKAGES = ("lithograph", "longcat", "service", "studio", "trainer")
CHINESE = {
    code: form
    for path in sorted((ROOT / "studio" / "locales" / "zh" / "errors").glob("*.json"))
    for code, form in json.loads(path.read_text(encoding="utf-8")).items()
}

Templates = tuple[str, str]


def literals(call: ast.Call) -> tuple[str, Templates] | None:
    """Return code and templates of a call that makes an error or a problem; None for another call."""
    named = {word.arg: word.value for word in call.keywords}
    match call.func:
        case ast.Name(id="Problem") if "code" in named:
            parts = [named.get("code"), named.get("template"), named.get("remedy_template")]
        case ast.Name(id=name) if name.endswith("Error") and len(call.args) == 2:
            parts = [*call.args, named.get("remedy")]
        case ast.Attribute(attr="__init__", value=ast.Call(func=ast.Name(id="super"))) if len(call.args) == 2:
            parts = [*call.args, named.get("remedy")]
        case _:
            return None
    texts = [part.value if isinstance(part, ast.Constant) else "" if part is None else None for part in parts]
    match texts:
        case [str(code), str(problem), str(remedy)]:
            return code, (problem, remedy)
    return None


def in_source() -> Iterator[tuple[str, Templates, str]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and (found := literals(node)):
                    yield *found, f"{path.relative_to(ROOT)}:{node.lineno}"


@functools.cache
def known() -> dict[str, Templates]:
    return _TEMPLATES | {code: templates for code, templates, _ in in_source()}


def placeholders(template: str) -> set[str]:
    return {name.split(".")[0] for _, name, _, _ in string.Formatter().parse(template) if name is not None}


def test_a_code_always_has_the_same_templates() -> None:
    seen: dict[str, Templates] = dict(_TEMPLATES)
    for code, templates, place in in_source():
        assert re.fullmatch("[a-z][a-z0-9_]*", code), place
        assert seen.setdefault(code, templates) == templates, place


@pytest.mark.parametrize("code", sorted(known()))
def test_every_code_has_a_chinese_form(code: str) -> None:
    problem, remedy = known()[code]
    chinese = CHINESE[code]
    assert len(chinese) == (2 if remedy else 1)
    assert placeholders(chinese[0]) <= placeholders(problem) | {"field", "value"}
    assert not remedy or placeholders(chinese[1]) <= placeholders(remedy) | placeholders(problem) | {"field", "value"}


def test_no_chinese_form_is_left_without_its_code() -> None:
    assert CHINESE.keys() <= known().keys()


def test_an_error_names_field_value_problem_and_remedy() -> None:
    error = ConfigError(
        "too_many_steps", "more than the {most} that fit", remedy="give at most {most}", field="steps", value=9, most=5
    )
    assert str(error) == "steps = 9: more than the 5 that fit; give at most 5"
    assert error.code == "invalid_config"
    (problem,) = error.problems
    assert (problem.code, problem.field, problem.value) == ("too_many_steps", "steps", 9)


def test_an_inner_error_becomes_one_of_the_outer_input() -> None:
    inner = PromptTooLongError(tokens=9, max_tokens=5)
    assert str(inner) == "has 9 tokens; the model reads at most 5; shorten it by at least 4 tokens"
    outer = inner.within(field="prompt", value="a cat")
    assert str(outer) == "prompt = a cat: has 9 tokens; the model reads at most 5; shorten it by at least 4 tokens"
    assert isinstance(outer, PromptTooLongError)
    assert outer.tokens == 9


def test_a_field_gets_the_name_that_the_client_sent() -> None:
    error = UserError.of(
        [Problem(code="a", template="", field=field) for field in ("adapter", "adapter.rank", "adapters")]
    )
    renamed = error.renamed("adapter", "adapters.1.name")
    assert [p.field for p in renamed.problems] == ["adapters.1.name", "adapters.1.name.rank", "adapters"]


def test_a_long_value_keeps_its_ends() -> None:
    path = Path("/data") / ("a" * 300) / "cat.png"
    shown = show(path)
    assert len(shown) == 200
    assert shown.startswith("/data/aaa")
    assert shown.endswith("/cat.png")
    assert "(314 characters)" in shown
    assert show(shown) == shown


def test_errors_and_problems_cross_processes() -> None:
    cause = Problem(code="inner", template="is {what}", details={"what": "{odd}"})
    error = LithographError("outer", "failed: {cause}", cause=cause)
    assert str(error) == "failed: is {odd}"
    again = pickle.loads(pickle.dumps(error))
    assert again.problems == error.problems
    (problem,) = error.problems
    assert Problem.from_json(json.loads(json.dumps(problem.to_json()))) == problem
