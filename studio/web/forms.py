"""Forms as pydantic models: all wrong fields are reported at once, with the same problems as in configurations."""

from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData

from longcat.validation import problems_of
from studio.web.errors import FormError


def text_of(form: FormData, name: str) -> str:
    """Return a field's text, stripped; empty if the field is missing or a file."""
    value = form.get(name, "")
    return value.strip() if isinstance(value, str) else ""


M = TypeVar("M", bound=BaseModel)


def read_form(model: type[M], form: FormData, **values: object) -> M:
    """Validate a form; an empty field gets its default. ``values`` are fields that the caller has parsed.

    Raises ``FormError`` with a problem for every field that is wrong.
    """
    texts = {name: text for name in model.model_fields if (text := text_of(form, name))}
    try:
        return model.model_validate(texts | values)
    except ValidationError as error:
        raise FormError.of(problems_of(error, model)) from error
