"""``/v1/batches``: make, follow, list and cancel batches, as OpenAI has it."""

from typing import Annotated

from fastapi import APIRouter, Query, Request

from service.http.compat.errors import ERRORS, OpenAIRoute
from service.http.edge.authentication import CallerDependency
from service.http.jobs.batches.routes.pages import BatchesDependency, limit_of, page_of
from service.http.jobs.batches.schema import BatchList, BatchObject, CreateBatchRequest

_DEFAULT_LISTED, _MOST_LISTED = 20, 100

router = APIRouter(tags=["openai"], route_class=OpenAIRoute, responses=ERRORS)


@router.post("/v1/batches", summary="Generate the requests of a file, as OpenAI has it")
async def create_batch(
    body: CreateBatchRequest, request: Request, batches: BatchesDependency, caller: CallerDependency
) -> BatchObject:
    """The requests run at the priority `low`, unless they give another, within the limits of the key."""
    return (await batches.create(body, caller, request.state.request_id)).shown()


@router.get("/v1/batches", summary="The batches of this key, as OpenAI has it")
async def list_batches(
    batches: BatchesDependency,
    caller: CallerDependency,
    after: Annotated[str | None, Query(description="The last_id of the page before.")] = None,
    limit: Annotated[str | None, Query(description="1 to 100, by default 20.")] = None,
) -> BatchList:
    """The newest first; one with the role admin sees those of all keys."""
    most = limit_of(limit, default=_DEFAULT_LISTED, most=_MOST_LISTED)
    page, has_more = page_of(await batches.visible_to(caller), after, most)
    shown = [batch.shown() for batch in page]
    first, last = (shown[0].id, shown[-1].id) if shown else (None, None)
    return BatchList(data=shown, first_id=first, last_id=last, has_more=has_more)


@router.get("/v1/batches/{batch_id}", summary="One batch, as OpenAI has it")
async def show_batch(batch_id: str, batches: BatchesDependency, caller: CallerDependency) -> BatchObject:
    """Its status, its counts, and the ids of its files once it has ended."""
    return (await batches.get(batch_id, caller)).shown()


@router.post("/v1/batches/{batch_id}/cancel", summary="Cancel a batch, as OpenAI has it")
async def cancel_batch(batch_id: str, batches: BatchesDependency, caller: CallerDependency) -> BatchObject:
    """Its requests cost no more steps; what is done is in its files."""
    return (await batches.cancel(batch_id, caller)).shown()
