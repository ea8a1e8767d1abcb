"""The form of an upload, which goes to a temporary file as it arrives."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

from fastapi import Request
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from longcat.errors import UserError
from longcat.problem import show
from longcat.validation import validated
from service.http.edge.body_limits import SENT_TYPE
from service.http.edge.errors import BodyTooLargeError
from service.http.jobs.batches.schema import ExpiresAfter
from service.http.requests.form_body import form_damaged, is_form

_PURPOSE = "batch"
_FIELDS = frozenset({"file", "purpose", "expires_after", "expires_after[anchor]", "expires_after[seconds]"})
_MOST_FIELD_BYTES = 4096
FORM_BYTES = 64 * 1024
"""Most bytes of a form beside its file."""


def file_too_large(max_bytes: int) -> BodyTooLargeError:
    """Return the error of a file, or a form around it, that exceeds the size limit."""
    return BodyTooLargeError(
        "batch_file_too_large",
        "the file exceeds {max_bytes} bytes",
        remedy="split it into several batches, or start the server with a higher --max-batch-bytes",
        field="file",
        max_bytes=max_bytes,
    )


@dataclass(frozen=True, kw_only=True)
class Upload:
    """An uploaded file."""

    content: BinaryIO
    size: int
    filename: str
    expires_after: ExpiresAfter | None


@asynccontextmanager
async def upload_of(request: Request, *, max_bytes: int) -> AsyncIterator[Upload]:
    """Yield the file of a request's form. Raises ``UserError``."""
    sent_type: str = request.scope.get(SENT_TYPE, "")
    if not is_form(sent_type):
        raise UserError(
            "upload_not_form",
            "the body is not a form with a file",
            remedy="send multipart/form-data with the fields purpose and file",
            field="body",
        )
    parser = MultiPartParser(
        Headers({"content-type": sent_type}),
        request.stream(),
        max_files=1,
        max_fields=len(_FIELDS),
        max_part_size=_MOST_FIELD_BYTES,
    )
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, UnicodeError) as error:
        raise form_damaged(show(getattr(error, "message", "") or "a part of it is damaged")) from error
    try:
        upload = _checked(dict(form.multi_items()))
        if upload.size > max_bytes:
            raise file_too_large(max_bytes)
        yield upload
    finally:
        await form.close()


def _checked(fields: dict[str, Any]) -> Upload:
    if unknown := next((name for name in fields if name not in _FIELDS), None):
        raise UserError(
            "upload_unknown_field", "not a field of an upload", remedy="give purpose and file", field=show(unknown)
        )
    if (purpose := fields.get("purpose")) != _PURPOSE:
        raise UserError(
            "upload_other_purpose",
            "not a purpose of files on this server",
            remedy="give the purpose {purpose}",
            field="purpose",
            value=show(purpose) if isinstance(purpose, str) else None,
            purpose=_PURPOSE,
        )
    file = fields.get("file")
    if not isinstance(file, UploadFile):
        raise UserError(
            "upload_without_file",
            "no file",
            remedy="give it as a part with a filename, in JSON Lines",
            field="file",
        )
    if not file.size:
        raise UserError("upload_file_empty", "the file is empty", remedy="give one request a line", field="file")
    return Upload(
        content=file.file, size=file.size, filename=show(file.filename or "file"), expires_after=_expiry(fields)
    )


def _expiry(fields: dict[str, Any]) -> ExpiresAfter | None:
    """Return the field ``expires_after``, which clients send in parts with brackets, or as JSON."""
    given: Any = {
        name: fields[f"expires_after[{name}]"]
        for name in ExpiresAfter.model_fields
        if f"expires_after[{name}]" in fields
    }
    if isinstance(text := fields.get("expires_after"), str):
        try:
            given = json.loads(text)
        except (ValueError, RecursionError):
            given = text
    if not given:
        return None
    if isinstance(given, dict) and str(given.get("seconds", "")).isdecimal():
        given["seconds"] = int(given["seconds"])
    return validated(ExpiresAfter, given)
