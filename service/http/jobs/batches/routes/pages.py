"""Pages of lists, by OpenAI's parameters, and the batches of an app."""

from collections.abc import Sequence
from typing import Annotated, TypeVar

from fastapi import Depends, Request

from longcat.errors import UserError
from service.http.jobs.batches.batches import ImageBatches
from service.http.jobs.batches.errors import BatchesNotOfferedError
from service.http.jobs.batches.records import BatchRecord, FileRecord

_Record = TypeVar("_Record", FileRecord, BatchRecord)


async def batches_of(request: Request) -> ImageBatches:
    """Return the app's batches. Raises ``BatchesNotOfferedError``."""
    batches: ImageBatches | None = request.app.state.batches
    if batches is None:
        raise BatchesNotOfferedError
    return batches


BatchesDependency = Annotated[ImageBatches, Depends(batches_of)]


def limit_of(given: str | None, *, default: int, most: int) -> int:
    """Return the length of a page. Raises ``UserError``."""
    if given is None:
        return default
    if not (given.isascii() and given.isdecimal() and len(given) < len(str(most)) + 1 and 1 <= int(given) <= most):
        raise UserError(
            "page_limit", "not a number of entries", remedy="give 1 to {most}", field="limit", value=given, most=most
        )
    return int(given)


def page_of(records: Sequence[_Record], after: str | None, limit: int) -> tuple[list[_Record], bool]:
    """Return the records behind the one of an id, and whether more follow. Raises ``UserError`` for an unknown id."""
    start = 0
    if after:
        ids = [record.id for record in records]
        if after not in ids:
            raise UserError(
                "page_after_unknown", "no entry of this list", remedy="give the last_id of the page before",
                field="after", value=after,
            )  # fmt: skip
        start = ids.index(after) + 1
    return list(records[start : start + limit]), len(records) > start + limit
