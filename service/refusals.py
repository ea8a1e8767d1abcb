"""What is wrong with a request: the field, its value, the problem, what to give instead. Shape is checked here."""

import difflib
import json
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from longcat.errors import UserError
from service.schema import AdapterChoice, FieldProblem, GenerateRequest

_SHOWN_CHARACTERS = 80
UNKNOWN_FIELD = "unknown field"

_Model = TypeVar("_Model", bound=BaseModel)


class InvalidRequestError(UserError):
    """A request that cannot be drawn, with every field that is wrong."""

    def __init__(self, problems: list[FieldProblem]) -> None:
        super().__init__("; ".join(map(_sentence, problems)))
        self.problems = problems


class NotJsonError(UserError):
    """A body that is no JSON at all."""


class BodyTooLargeError(UserError):
    """A body over the size limit."""


def parse(model: type[_Model], body: bytes) -> _Model:
    """A request from JSON, whatever content type it came with. Raises ``NotJsonError`` or ``InvalidRequestError``."""
    try:
        return model.model_validate_json(body, by_alias=True, by_name=False)
    except ValidationError as error:
        raise _refusal(error, model) from error


def check_request(fields: Mapping[str, Any]) -> GenerateRequest:
    """A request from its fields. Raises ``InvalidRequestError``."""
    try:
        return GenerateRequest.model_validate(fields)
    except ValidationError as error:
        raise _refusal(error, GenerateRequest) from error


def show(value: object) -> str:
    """A value as an error message shows it: text as it is, the rest as JSON, shortened."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}… ({len(text)} characters)"


def problem_with(field: str, value: object, problem: str, remedy: str) -> FieldProblem:
    """One field that is wrong; the value is shortened."""
    return FieldProblem(field=field, value=show(value), problem=problem, remedy=remedy)


def _sentence(problem: FieldProblem) -> str:
    """As in ``steps = 0: too small, give at least 1``."""
    given = f" = {problem.value}" if problem.value else ""
    return f"{problem.field or 'body'}{given}: {problem.problem}, {problem.remedy}"


def _refusal(error: ValidationError, model: type[BaseModel]) -> UserError:
    problems = error.errors(include_url=False)
    if problems[0]["type"] == "json_invalid":
        return NotJsonError(f"the body is not JSON ({problems[0]['ctx']['error']}); send one JSON object")
    return InvalidRequestError([_from_pydantic(problem, model) for problem in problems])


def _from_pydantic(error: Mapping[str, Any], model: type[BaseModel]) -> FieldProblem:
    field, given = ".".join(str(part) for part in error["loc"]), error["input"]
    match error["type"]:
        case "missing":
            return problem_with(field, "", "missing", "add it")  # the input is the object that lacks it
        case "extra_forbidden":
            return problem_with(field, given, UNKNOWN_FIELD, _nearest(field, model))
        case "model_type" if field:
            return problem_with(field, given, "not a JSON object", 'give one, as in {"name": "ink"}')
        case "multiple_of":
            grid = error["ctx"]["multiple_of"]
            nearest = max(grid, round(given / grid) * grid)
            return problem_with(
                field, given, f"not a multiple of {grid}", f"give a multiple of {grid}, such as {nearest}"
            )
    problem, remedy = _WORDING.get(error["type"], (str(error["msg"]), "see /docs for what the field takes"))
    return problem_with(
        field, given, problem, remedy.format_map({n: _plain(v) for n, v in error.get("ctx", {}).items()})
    )


def _plain(value: object) -> object:
    """0 for 0.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _nearest(field: str, model: type[BaseModel]) -> str:
    fields = (AdapterChoice if field.startswith("adapters.") else model).model_fields
    names = [info.alias or name for name, info in fields.items()]
    close = difflib.get_close_matches(field.rpartition(".")[2], names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known fields: {', '.join(names)}"


_WORDING = {
    "string_type": ("not a string", "give a string"),
    "string_too_short": ("empty", "give some text"),
    "string_pattern_mismatch": ("blank", "give some text"),
    "int_type": ("not a whole number", "give a whole number, without quotes"),
    "int_from_float": ("not a whole number", "give a whole number"),
    "float_type": ("not a number", "give a number, without quotes"),
    "finite_number": ("not finite", "give a finite number"),
    "bool_type": ("neither true nor false", "give true or false"),
    "tuple_type": ("not a list", 'give a list, as in [{{"name": "ink"}}]'),
    "too_long": ("too many", "give at most {max_length}"),
    "greater_than": ("too small", "give more than {gt}"),
    "greater_than_equal": ("too small", "give at least {ge}"),
    "less_than_equal": ("too large", "give at most {le}"),
    "literal_error": ("not a choice", "give {expected}"),
    "model_type": ("not a JSON object", "send one JSON object, as in /docs"),
}
"""Problem and remedy for each of pydantic's error types; braces are filled from the error's context."""
