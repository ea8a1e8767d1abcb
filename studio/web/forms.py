"""Forms as pydantic models: every wrong field is reported at once, with the problems that all configurations use."""

from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData

from longcat.validation import problems_of
from studio.web.errors import FormError


def text_of(form: FormData, name: str) -> str:
    """Return a field's text, stripped; empty if the form has no such field, or a file."""
    value = form.get(name, "")
    return value.strip() if isinstance(value, str) else ""


M = TypeVar("M", bound=BaseModel)


def read_form(model: type[M], form: FormData, **values: object) -> M:
    """Return the form as the model has it; an empty field is at its default. ``values`` are fields read otherwise.

    Raises ``FormError`` with a problem for every field that is wrong.
    """
    texts = {name: text for name in model.model_fields if (text := text_of(form, name))}
    try:
        return model.model_validate(texts | values)
    except ValidationError as error:
        raise FormError.of(problems_of(error, model)) from error
