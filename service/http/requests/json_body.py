"""Request bodies: forms with pictures, or JSON in UTF-8, whatever their content type; a reason for every other body."""

import codecs
import json
import math
from collections.abc import Callable, Coroutine
from email.message import Message
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

from longcat.errors import UserError
from longcat.problem import show
from longcat.validation import problems_of
from service.http.edge.body_limits import SENT_TYPE
from service.http.edge.errors import BodyTooLargeError
from service.http.requests.form_body import is_form, parse_form, takes_forms
from service.http.requests.threads import run_in_thread
from service.wire.editing.fields import PICTURE_FIELDS

_LONGEST_INTEGER = 308
"""Digits: every integer of so many is also a float, which checks and messages may convert it to."""
_MOST_COMMAS = 50_000
_MOST_FIELDS = 10_000
"""More than any request has. Checking a value takes as long as parsing many, and Python runs nothing else meanwhile."""
_UTF_8_MARK = b"\xef\xbb\xbf"
_COMPRESSED = {
    b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"x\x01": "deflate", b"x\x5e": "deflate", b"x\x9c": "deflate",
    b"x\xda": "deflate",
}  # fmt: skip
"""Compression formats by the first bytes. Brotli has no such mark."""


class NotJsonError(UserError):
    """A body is not JSON in UTF-8."""

    code = "not_json"


class JsonRoute(APIRoute):
    """A route whose body ``read_body`` parses in a thread, because reporting its problems can take long."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler. It gets the model that it would make of the body, and takes it as it is."""
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle
        model = self.body_field.field_info.annotation
        assert isinstance(model, type)
        assert issubclass(model, BaseModel)

        async def handle_json(request: Request) -> Response:
            return await handle(_JsonRequest(request, model))

        return handle_json


class _JsonRequest(Request):
    def __init__(self, request: Request, model: type[BaseModel]) -> None:
        super().__init__(request.scope, request.receive)
        self._model = model

    async def json(self) -> BaseModel | None:
        """Return the model; None for an unusable body, whose error is then in ``request.state.body_error``.

        FastAPI would reply to an exception before it has checked what else the request needs, such as a key. It takes None
        for no body, and raises ``RequestValidationError`` once the rest is checked.
        """
        sent = self.headers.get("content-encoding", ""), self.headers.get("content-type", "")
        sent_type: str = self.scope.get(SENT_TYPE, "")
        most: int = self.app.state.admission.config.max_body_bytes
        body = await self.body()
        try:
            if takes_forms(self._model) and is_form(sent_type):
                return await run_in_thread(read_form, self._model, body, sent_type, most)
            return await run_in_thread(read_body, self._model, body, *sent, most)
        except UserError as error:
            self.state.body_error = error
            return None


def error_of_body(request: Request) -> UserError:
    """Return the error of a body for which FastAPI raised ``RequestValidationError``; it does not read empty ones."""
    error: UserError = getattr(request.state, "body_error", None) or not_json("it is empty")
    return error


def read_body(
    model: type[BaseModel], body: bytes, content_encoding: str, content_type: str, max_bytes: int
) -> BaseModel:
    """Return the model that a body describes. Raises ``UserError`` with the body's problems.

    ``max_bytes``: of the body without the pictures in it.
    """
    value = parse_json(body, content_encoding, content_type)
    has_escapes = b"\\u" in body  # only an escape can make a surrogate
    return read_value(model, value, len(body), max_bytes, has_escapes=has_escapes)


def read_value(
    model: type[BaseModel], value: object, size: int, max_bytes: int, *, has_escapes: bool = True
) -> BaseModel:
    """Return the model that a JSON value of ``size`` bytes describes, as ``read_body`` does.

    A model that clients may write in another form has a function ``prepared``, which returns the value in its own.
    """
    if isinstance(value, dict) and (prepared := getattr(model, "prepared", None)) is not None:
        value = prepared(value)
    _check_rest(value, size, max_bytes)
    if has_escapes:
        _check_encodable(value)
    return _validated(model, value)


def read_form(model: type[BaseModel], body: bytes, content_type: str, max_bytes: int) -> BaseModel:
    """Return the model that a form describes, as ``read_body`` does."""
    value = parse_form(model, body, content_type)
    _check_rest(value, len(body), max_bytes)
    _check_encodable({name: part for name, part in value.items() if isinstance(part, str)})
    return _validated(model, value)


def _check_rest(value: object, size: int, max_bytes: int) -> None:
    """Raise ``BodyTooLargeError`` if a body is too large even without its pictures."""
    pictures = (value.get(name) for name in PICTURE_FIELDS) if isinstance(value, dict) else ()
    for part in pictures:
        contents = part if isinstance(part, list) else [part]
        size -= sum(len(content) for content in contents if isinstance(content, str | bytes))
    if size > max_bytes:
        raise BodyTooLargeError(
            "body_rest_too_large",
            "the body exceeds {max_bytes} bytes beside its pictures",
            remedy="send a shorter prompt",
            max_bytes=max_bytes,
        )


def _validated(model: type[BaseModel], value: Any) -> BaseModel:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        problems = problems_of(error, model)
        if not isinstance(value, dict):
            problems = (problem.within(field="body", value=problem.value) for problem in problems)
        raise UserError.of(problems) from None


def parse_json(body: bytes, content_encoding: str = "", content_type: str = "") -> Any:
    """Return the value of a body. A byte-order mark of UTF-8 is skipped.

    An integer that exceeds floats is infinite, as ``1e400`` is: no field takes either. Raises ``NotJsonError``, or
    ``UserError`` for a field that an object has twice, and for more values than a request can have.
    """
    if (compression := _compression(body, content_encoding)) is not None:
        raise NotJsonError(
            "body_compressed",
            "the body is compressed ({compression})",
            remedy="send it as it is, without Content-Encoding",
            compression=compression,
        )
    if body.count(b",") > _MOST_COMMAS:
        raise _too_many_values()
    content = body.removeprefix(_UTF_8_MARK)
    if (encoding := _other_encoding(content, content_type)) is not None:
        raise NotJsonError(
            "body_in_other_encoding",
            "the body is encoded in {encoding}",
            remedy="send JSON in UTF-8",
            encoding=encoding,
        )
    try:
        return json.loads(content.decode("utf-8"), parse_int=_integer, object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise NotJsonError(
            "body_not_utf8",
            "the body is not UTF-8 at byte {position}",
            remedy="send JSON in UTF-8",
            position=error.start,
        ) from error
    except RecursionError as error:
        raise not_json("it is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise not_json(str(error)) from error


def _check_encodable(value: object) -> None:
    """Raise ``NotJsonError`` for surrogates, which neither a reply nor the tokenizer can take."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise not_json(f"{error.reason} at character {error.start}") from error
    except RecursionError as error:
        raise not_json("it is nested too deeply") from error


def not_json(reason: str) -> NotJsonError:
    """Return the error of a body that cannot be parsed."""
    return NotJsonError(
        "body_not_json", "the body is not JSON: {reason}", remedy="send one JSON object", reason=show(reason)
    )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object. Raises ``UserError`` for a field given twice: a proxy may have checked the other one."""
    if len(pairs) > _MOST_FIELDS:
        raise _too_many_values()
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise UserError(
                "body_field_twice", "has the field {name} twice", remedy="give it once", field="body", name=show(name)
            )
        fields[name] = value
    return fields


def _too_many_values() -> UserError:
    return UserError(
        "body_too_many_values",
        "has more values than any request",
        remedy="send the fields of one request",
        field="body",
    )


def _integer(digits: str) -> float:
    if len(digits) <= _LONGEST_INTEGER:
        return int(digits)
    return -math.inf if digits.startswith("-") else math.inf


def _compression(body: bytes, content_encoding: str) -> str | None:
    """Return the name of a body's compression; None for one that has none."""
    named = content_encoding.strip().lower()
    if named not in ("", "identity"):
        return show(named)
    return next((name for mark, name in _COMPRESSED.items() if body.startswith(mark)), None)


def _other_encoding(content: bytes, content_type: str) -> str | None:
    """Return the name of an encoding other than UTF-8, found in the content or declared for it; None for UTF-8.

    A declared one is believed only for text beyond ASCII: JSON has no ``charset``, and some clients always send one.
    """
    found = json.detect_encoding(content)
    if found.startswith(("utf-16", "utf-32")):
        return found[:6].upper()
    message = Message()
    message["content-type"] = content_type
    declared = message.get_content_charset()
    if declared is None or content.isascii():
        return None
    try:
        is_utf8 = codecs.lookup(declared).name == "utf-8"
    except (LookupError, ValueError):
        is_utf8 = False
    return None if is_utf8 else show(declared)
