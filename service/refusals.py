"""What is wrong with a request: the field, its value, the problem, what to give instead. Shape is checked here."""

import difflib
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
        super().__init__("; ".join(f"{p.field or 'body'}: {p.problem}; {p.remedy}" for p in problems))
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
    """A value as an error message shows it: short, whatever it is."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}… ({len(text)} characters)"


def problem_with(field: str, value: object, problem: str, remedy: str) -> FieldProblem:
    """One field that is wrong; the value is shortened."""
    return FieldProblem(field=field, value=show(value), problem=problem, remedy=remedy)


def _refusal(error: ValidationError, model: type[BaseModel]) -> UserError:
    problems = error.errors(include_url=False)
    if problems[0]["type"] == "json_invalid":
        return NotJsonError(f"the body is not JSON ({problems[0]['ctx']['error']}); send one JSON object")
    return InvalidRequestError([_from_pydantic(problem, model) for problem in problems])


def _from_pydantic(error: Mapping[str, Any], model: type[BaseModel]) -> FieldProblem:
    field = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return problem_with(field, error["input"], UNKNOWN_FIELD, _nearest(field, model))
    remedy = _REMEDIES.get(error["type"], "see /docs for what the field takes").format_map(error.get("ctx", {}))
    return problem_with(field, error["input"], str(error["msg"]), remedy)


def _nearest(field: str, model: type[BaseModel]) -> str:
    fields = (AdapterChoice if field.startswith("adapters.") else model).model_fields
    names = [info.alias or name for name, info in fields.items()]
    close = difflib.get_close_matches(field.rpartition(".")[2], names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known fields: {', '.join(names)}"


_REMEDIES = {
    "missing": "give it",
    "string_type": "give a string",
    "string_too_short": "give some text",
    "int_type": "give a whole number, without quotes",
    "int_from_float": "give a whole number",
    "float_type": "give a number, without quotes",
    "finite_number": "give a finite number",
    "greater_than": "give more than {gt}",
    "tuple_type": 'give a list, as in [{{"name": "ink"}}]',
    "too_long": "give at most {max_length}",
    "bool_type": "give true or false",
    "multiple_of": "give a multiple of {multiple_of}",
    "greater_than_equal": "give at least {ge}",
    "less_than_equal": "give at most {le}",
    "literal_error": "give {expected}",
    "model_type": "send one JSON object, as in /docs",
}
"""What to do about each of pydantic's error types; braces are filled from the error's context."""
