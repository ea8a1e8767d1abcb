"""Request bodies as forms: multipart/form-data, with pictures as files, for the models that have fields for them."""

import json
from collections.abc import Collection
from typing import Any, get_args

from pydantic import BaseModel
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, FormParser, parse_options_header

from longcat.errors import UserError
from longcat.problem import show
from service.wire.editing.fields import PICTURE_FIELDS

_MOST_PARTS = 100
_FORM = "multipart/form-data"
_LISTS = ("image", "adapters")
"""Fields that may have several values, as fields of one name or with brackets after it: ``image[]``."""


class PictureFormError(UserError):
    """A body cannot be read as a form."""

    code = "not_json"


def is_form(content_type: str) -> bool:
    """Return True for the content type of a form."""
    return content_type.partition(";")[0].strip().lower() == _FORM


def parse_form(model: type[BaseModel], body: bytes, content_type: str) -> dict[str, Any]:
    """Return the fields of a form: files as bytes, text as the model's fields have it. Raises ``PictureFormError``."""
    fields: dict[str, list[Any]] = {}
    is_whole = False

    def add(part: bytes | None, value: Any) -> None:
        name = (part or b"").decode("utf-8", "replace").removesuffix("[]")
        fields.setdefault(name, []).append(value)
        if sum(map(len, fields.values())) > _MOST_PARTS:
            raise FormParserError(f"more than {_MOST_PARTS} parts")

    def on_field(field: Field) -> None:
        add(field.field_name, (field.value or b"").decode("utf-8", "surrogateescape"))

    def on_file(file: File) -> None:
        file.file_object.seek(0)
        add(file.field_name, file.file_object.read())

    def on_end() -> None:
        nonlocal is_whole
        is_whole = True

    _, parameters = parse_options_header(content_type)
    try:
        settings = {"MAX_MEMORY_FILE_SIZE": len(body) + 1}
        parser = FormParser(_FORM, on_field, on_file, on_end, boundary=parameters.get(b"boundary"), config=settings)
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise form_damaged(str(error)) from error
    if not is_whole:
        raise form_damaged("it ends before its last boundary")
    text = _text_fields(model)
    return {name: _value(name, values, text) for name, values in fields.items()}


def form_damaged(reason: str) -> PictureFormError:
    """Return the error of a body that cannot be parsed as a form."""
    return PictureFormError(
        "form_damaged",
        "the body is not multipart/form-data: {reason}",
        remedy="send one with an HTTP client library, or JSON",
        reason=show(reason),
    )


def _value(name: str, values: list[Any], text: Collection[str]) -> Any:
    """Return a field's value; of a field given twice, all values."""
    found = [value if isinstance(value, bytes) or name in text else _parsed(value) for value in values]
    if len(found) == 1:
        return found[0]
    if name not in _LISTS:
        raise UserError(
            "body_field_twice", "has the field {name} twice", remedy="give it once", field="body", name=show(name)
        )
    return found


def _parsed(text: str) -> Any:
    """Return the number, truth value, list or object that a field's text is in JSON; other text as it is."""
    try:
        return json.loads(text.lower() if text in ("True", "False") else text)
    except (ValueError, RecursionError):
        return text


def _text_fields(model: type[BaseModel]) -> set[str]:
    """Return the names of the fields whose value may be any text."""
    fields = model.model_fields.items()
    return {info.alias or name for name, info in fields if str in (info.annotation, *get_args(info.annotation))}


def takes_forms(model: type[BaseModel]) -> bool:
    """Return True for a model with pictures."""
    return PICTURE_FIELDS[0] in model.model_fields
