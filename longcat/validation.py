"""pydantic's validation errors as problems: field, value, problem, remedy. Every pydantic model of the product uses it."""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, TypeVar, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel, ValidationError

from longcat.errors import UserError
from longcat.problem import Problem, show

_TEMPLATES: Mapping[str, tuple[str, str]] = {
    "missing": ("missing", "add it"),
    "string_type": ("not a string", "give a string"),
    "string_too_short": ("empty", "give some text"),
    "string_too_long": ("too long", "give at most {max_length} characters"),
    "string_pattern_mismatch": ("does not match {pattern}", "give text that matches it"),
    "int_type": ("not a whole number", "give a whole number, without quotes"),
    "int_parsing": ("not a whole number", "give a whole number"),
    "int_parsing_size": ("too large", "give a smaller number"),
    "int_from_float": ("not a whole number", "give a whole number"),
    "float_type": ("not a number", "give a number, without quotes"),
    "float_parsing": ("not a number", "give a number"),
    "finite_number": ("not finite", "give a finite number"),
    "bool_type": ("neither true nor false", "give true or false"),
    "bool_parsing": ("neither true nor false", "give true or false"),
    "tuple_type": ("not a list", "give a list"),
    "list_type": ("not a list", "give a list"),
    "dict_type": ("not a JSON object", "give a JSON object"),
    "model_type": ("not a JSON object", "give a JSON object"),
    "model_attributes_type": ("not a JSON object", "give a JSON object"),
    "too_long": ("too many", "give at most {max_length}"),
    "too_short": ("too few", "give at least {min_length}"),
    "greater_than": ("too small", "give more than {gt}"),
    "greater_than_equal": ("too small", "give at least {ge}"),
    "less_than": ("too large", "give less than {lt}"),
    "less_than_equal": ("too large", "give at most {le}"),
    "multiple_of": ("not a multiple of {multiple_of}", "give a multiple of {multiple_of}, such as {nearest}"),
    "literal_error": ("not one of the choices", "give {expected}"),
    "enum": ("not one of the choices", "give {expected}"),
    "path_type": ("not a path", "give a path"),
    "url_parsing": ("not a URL: {error}", "give a URL such as https://host/path"),
    "json_invalid": ("not JSON: {error}", "give one JSON object"),
}
"""Problem and remedy by pydantic's error type, which is the problem's code. Other types keep pydantic's message."""


UNKNOWN_FIELD_CODES = frozenset({"unknown_field", "unknown_field_listed"})
CODES = _TEMPLATES.keys() | UNKNOWN_FIELD_CODES
"""Codes of problems whose details come from the model, not from the validated input."""

_UNION_MEMBER = re.compile(
    r"(constrained-)?(bool|bytes|dict|float|int|list|str|tuple)|(dict|function-\w+|list|literal|nullable|set|tuple)\[.*\]"
)
"""A step of pydantic's path that names a type of a union, not a field: one error is reported for each type."""

_ALIKE = 0.7
"""Least similarity of two words for one to be a misspelling of the other: `nmae` and `name` have 0.75."""
_SHORTEST_WORD = 3
"""Shorter words are alike only if they are equal: the 4 of `text_encoder_4_precision` is no misspelling of a 1."""


MOST_PROBLEMS = 20
"""A request of 60 KB can have 30,000 problems. Beyond this number, they are counted."""
_LONGEST_NAME = 64
"""Longer names of unknown fields are compared with the known ones by their beginning."""

Model = TypeVar("Model", bound=BaseModel)


def validated(model: type[Model], fields: Mapping[str, Any]) -> Model:
    """Return a model made of ``fields``. Raises ``UserError`` with a problem for every field that is wrong."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise UserError.of(problems_of(error, model)) from error


def problems_of(error: ValidationError, model: type[BaseModel]) -> Iterator[Problem]:
    """Yield a problem for each of pydantic's errors; beyond ``MOST_PROBLEMS``, one with the number of the others.

    A validator of ours raises ``ProblemValueError``; one of a whole model names the field in its problem.
    """
    return problems_in(error.errors(include_url=False), model)


def problems_in(errors: Sequence[Mapping[str, Any]], model: type[BaseModel]) -> Iterator[Problem]:
    """Yield problems as ``problems_of`` does, for what pydantic's ``errors()`` returns; FastAPI passes it on."""
    yield from _each_problem(errors[:MOST_PROBLEMS], model)
    if len(errors) > MOST_PROBLEMS:
        count = len(errors) - MOST_PROBLEMS
        yield Problem(code="more_problems", template="and {count} more", details={"count": count})


def _each_problem(errors: Iterable[Mapping[str, Any]], model: type[BaseModel]) -> Iterator[Problem]:
    for part in errors:
        place = [step for step in part["loc"] if not (isinstance(step, str) and _UNION_MEMBER.fullmatch(step))]
        where = ".".join(map(str, place))
        given = None if part["type"] == "missing" else part["input"]
        value = show(given) if isinstance(given, Sequence | Mapping) else given
        context = {name: _plain(value) for name, value in part.get("ctx", {}).items()}
        if (step := context.get("multiple_of")) is not None:
            context["nearest"] = max(step, round(Fraction(given or 0) / step) * step)
        match part["type"]:
            case "value_error" if isinstance(cause := part["ctx"]["error"], ProblemValueError):
                problem = cause.problem.within(field=where, value=value) if where else cause.problem
            case "extra_forbidden":
                problem = unknown_field(where, value, names_of(_innermost(model, place[:-1])))
            case kind if kind in _TEMPLATES:
                template, remedy = _TEMPLATES[kind]
                # pydantic's context has more, such as the name of our class.
                details = {name: value for name, value in context.items() if f"{{{name}}}" in template + remedy}
                problem = Problem(
                    code=kind, template=template, remedy_template=remedy, field=where, value=value, details=details
                )
            case _:
                problem = Problem(
                    code="invalid_value",
                    template="{reason}",
                    field=where,
                    value=value,
                    details={"reason": part["msg"].removeprefix("Value error, ")},
                )
        yield problem


class ProblemValueError(ValueError):
    """A problem that a validator passes through pydantic."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


def check_http_url(given: str | None, *, example: str) -> str | None:
    """Return an optional URL. Raises ``ProblemValueError`` unless it is an ``http://`` or ``https://`` URL with a host."""
    if given is not None and not _is_http_url(given):
        raise ProblemValueError(
            Problem(
                code="not_an_http_url",
                template="not an http:// or https:// URL",
                remedy_template="give one such as {example}",
                details={"example": example},
            )
        )
    return given


def _is_http_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        has_host = bool(parts.hostname and _ascii_host(parts.hostname))
        return (
            parts.scheme in ("http", "https")
            and has_host
            and parts.port != 0
            and text.isprintable()
            and " " not in text
        )
    except ValueError:
        return False


def _ascii_host(name: str) -> str:
    """Return a host in ASCII. Raises ``ValueError`` for one that no client can call, such as an empty ``xn--``."""
    encoded = name.encode("idna").decode()
    if "xn--" in encoded.lower():
        import idna  # here: its tables are large, and few hosts need them

        idna.decode(encoded)
    return encoded


def unknown_field(field: str, value: object, known: Iterable[str]) -> Problem:
    """Return the problem of a field that does not exist, with the one that was probably meant."""
    names = list(known)
    if nearest := _nearest(field.rpartition(".")[2][:_LONGEST_NAME], names):
        return Problem(
            code="unknown_field", template="unknown field", remedy_template="did you mean {nearest!r}?",
            field=field, value=value, details={"nearest": nearest},
        )  # fmt: skip
    return Problem(
        code="unknown_field_listed", template="unknown field", remedy_template="known fields: {known}",
        field=field, value=value, details={"known": ", ".join(names)},
    )  # fmt: skip


def _nearest(given: str, names: Sequence[str]) -> str | None:
    """Return the name that was probably meant; None where that is unclear.

    Names are compared word by word: ``validation_torch_compile`` and ``validation_prompt`` have most letters in common, but
    mean different things. A name with one word more is suggested if no other has, as ``guidance_scale`` for ``guidance``.
    """
    words = _words(given)
    misspelled = [name for name in names if _are_alike(words, _words(name))]
    if misspelled:
        return max(misspelled, key=lambda name: _similarity(given, name))
    near = [name for name in names if _lacks_a_word(words, _words(name))]
    return near[0] if len(near) == 1 else None


def _words(name: str) -> list[str]:
    """Return the words of a name, which may be that of a command's flag, such as ``--max-rows``."""
    return name.removeprefix("--").replace("-", "_").lower().split("_")


def _are_alike(given: Sequence[str], words: Sequence[str]) -> bool:
    if len(given) != len(words):
        return "".join(given) == "".join(words)
    return all(one == other or _is_misspelled(one, other) for one, other in zip(given, words, strict=True))


def _is_misspelled(one: str, other: str) -> bool:
    """Return True if a word stands for another; hardly anybody mistypes the first letter."""
    if min(len(one), len(other)) < _SHORTEST_WORD or one[0] != other[0]:
        return False
    return one.startswith(other) or other.startswith(one) or _similarity(one, other) >= _ALIKE


def _similarity(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def _lacks_a_word(given: Sequence[str], words: Sequence[str]) -> bool:
    """Return True if a name lacks one word of another; a single word has to be the other's first."""
    if len(given) == 1 and words[0] != given[0]:
        return False
    return any([*words[:place], *words[place + 1 :]] == list(given) for place in range(len(words)))


def names_of(model: type[BaseModel]) -> list[str]:
    """Return the names by which a model's fields are given, other names that a field also has included."""
    names: dict[str, None] = {}
    for name, info in model.model_fields.items():
        choices = getattr(info.validation_alias, "choices", None) or [info.validation_alias or name]
        names |= dict.fromkeys(choice for choice in choices if isinstance(choice, str))
    return list(names)


def _innermost(model: type[BaseModel], path: Sequence[str | int]) -> type[BaseModel]:
    """Return the model at the end of a path of fields and list indices."""
    for step in path:
        field = next((info for name, info in model.model_fields.items() if step in (name, info.alias)), None)
        if field is not None:
            model = next(_models_in(field.annotation), model)
    return model


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


def _plain(value: object) -> Any:
    """Return 0 for 0.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
