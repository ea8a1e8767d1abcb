"""``/v1/files``: upload, list, fetch and delete the files of batches, as OpenAI has it."""

import logging
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse

from longcat.errors import UserError
from longcat.logs import log_event
from service.access.caller import Role
from service.http.admission import AdmissionDependency
from service.http.compat.errors import ERRORS, OpenAIRoute
from service.http.edge.authentication import CallerDependency
from service.http.jobs.batches.routes.pages import BatchesDependency, limit_of, page_of
from service.http.jobs.batches.schema import FileDeleted, FileList, FileObject
from service.http.jobs.batches.upload import upload_of

log = logging.getLogger("lithograph")

FILES_PATH = "/v1/files"
_MOST_LISTED = 10_000
_ORDERS = ("asc", "desc")
_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary", "description": "JSON Lines, a request each."},
                        "purpose": {"type": "string", "enum": ["batch"]},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2_592_000},
                    },
                }
            }
        },
    }
}
_LINES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The file.", "content": {"application/jsonl": {"schema": {"type": "string"}}}}
}

router = APIRouter(tags=["openai"], route_class=OpenAIRoute, responses=ERRORS)


@router.post(FILES_PATH, summary="Upload the file of a batch, as OpenAI has it", openapi_extra=_FORM)
async def upload_file(
    request: Request, batches: BatchesDependency, admission: AdmissionDependency, caller: CallerDependency
) -> FileObject:
    """A form with `purpose` `batch` and `file`: JSON Lines with `custom_id`, `method`, `url` and `body`."""
    caller.check(Role.GENERATE)
    async with upload_of(request, max_bytes=admission.config.batches.max_bytes) as upload:
        kept = batches.kept_seconds if upload.expires_after is None else upload.expires_after.seconds
        record = await batches.files.create(
            upload.content, upload.size, filename=upload.filename, key=caller.name, kept_seconds=kept
        )
    request_id: str = request.state.request_id
    log_event(log, "file_stored", request_id=request_id, key=caller.name, file=record.id, bytes=record.bytes)
    return record.shown()


@router.get(FILES_PATH, summary="The files of this key, as OpenAI has it")
async def list_files(
    batches: BatchesDependency,
    caller: CallerDependency,
    purpose: Annotated[str | None, Query(description="batch, or batch_output.")] = None,
    limit: Annotated[str | None, Query(description="1 to 10000.")] = None,
    order: Annotated[str | None, Query(description="By creation: asc, or desc, the default.")] = None,
    after: Annotated[str | None, Query(description="The last_id of the page before.")] = None,
) -> FileList:
    """The newest first; one with the role admin sees those of all keys."""
    if order not in (None, *_ORDERS):
        raise UserError("page_order", "not an order", remedy="give asc or desc", field="order", value=order)
    most = limit_of(limit, default=_MOST_LISTED, most=_MOST_LISTED)
    files = [file for file in await batches.files.visible_to(caller) if purpose in (None, file.purpose)]
    page, has_more = page_of(files[::-1] if order == "asc" else files, after, most)
    shown = [file.shown() for file in page]
    first, last = (shown[0].id, shown[-1].id) if shown else (None, None)
    return FileList(data=shown, first_id=first, last_id=last, has_more=has_more)


@router.get("/v1/files/{file_id}", summary="One file, as OpenAI has it")
async def show_file(file_id: str, batches: BatchesDependency, caller: CallerDependency) -> FileObject:
    """Its name, its size and its times."""
    return (await batches.files.get(file_id, caller)).shown()


@router.delete("/v1/files/{file_id}", summary="Delete a file, as OpenAI has it")
async def delete_file(file_id: str, batches: BatchesDependency, caller: CallerDependency) -> FileDeleted:
    """Remove a file that no unfinished batch reads."""
    await batches.delete_file(file_id, caller)
    return FileDeleted(id=file_id)


@router.get(
    "/v1/files/{file_id}/content",
    summary="The content of a file, as OpenAI has it",
    response_class=StreamingResponse,
    responses=_LINES,
)
async def file_content(file_id: str, batches: BatchesDependency, caller: CallerDependency) -> StreamingResponse:
    """Return the lines of a file: those that were uploaded, or the results of a batch, one for each request."""
    record = await batches.files.get(file_id, caller)
    stream = batches.files.stream(record)
    first = await anext(stream, b"")  # a storage that is down has a status of its own
    headers = {"Content-Length": str(record.bytes)}

    async def body() -> AsyncIterator[bytes]:
        async with aclosing(stream):
            yield first
            async for chunk in stream:
                yield chunk

    return StreamingResponse(body(), media_type="application/jsonl", headers=headers)
