"""Generate: a prompt, and the generations under way."""

import asyncio
from collections.abc import AsyncIterator

from fastapi import APIRouter
from fastapi.sse import format_sse_event
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response, StreamingResponse

from lithograph.client.errors import RequestError, ServiceError
from longcat.errors import LithographError
from studio.context import StudioContext, studio_of
from studio.generate.composer import Composer, adapters_in
from studio.generate.editing.address import editor_url
from studio.generate.form import read_recipe
from studio.generate.gallery_pages import filter_in, gallery_page
from studio.generate.generations import Generation
from studio.generate.limits import GenerationLimits
from studio.generate.recipe import PictureRecipe
from studio.web.error_pages import view_of
from studio.web.pages import Pages, redirect, render

router = APIRouter()

_HEARTBEAT_SECONDS = 15.0
"""Between comments on a stream without events: proxies close idle streams."""


@router.get("/generate")
async def generate_page(request: Request, like: str | None = None) -> Response:
    """Show the page; ``adapter`` is to be tried, ``like`` is a picture whose recipe fills the form."""
    studio = studio_of(request)
    recipe = studio.gallery.recipe(like) if like else PictureRecipe()
    if recipe.edit is not None:
        return redirect(request, editor_url(recipe.edit.image, like=like))
    asked = adapters_in(request)
    composer = Composer(
        recipe=recipe.model_copy(update={"adapters": (*recipe.adapters, *asked)}),
        decided="all" if like else "adapters" if asked else "",
    )
    gallery = await gallery_page(studio, filter_in(request))
    return render(request, "generate/page.html", **gallery, **await composer.context(studio))


@router.post("/generate")
async def generate(request: Request) -> Response:
    """Generate the pictures that the form describes."""
    studio = studio_of(request)
    async with request.form() as form:
        recipe = read_recipe(form, limits := GenerationLimits.of(studio.service.info))
    if limits.edits:
        return redirect(request, editor_url(prompt=recipe.prompt))
    return render(request, "generate/generation.html", generation=studio.generations.start(recipe))


@router.get("/generations/events")
async def generation_events(request: Request) -> Response:
    """Stream server-sent events: fragments of the page for all generations under way."""
    return StreamingResponse(_events(request, studio_of(request)), media_type="text/event-stream")


@router.get("/generations/{generation_id}")
async def generation_state(request: Request, generation_id: str) -> Response:
    """Return the result of a generation; nothing while it is under way."""
    generation = studio_of(request).generations.get(generation_id)
    if not generation.is_over:
        return Response(status_code=204)
    return HTMLResponse(_fragment(request, generation))


@router.post("/generations/{generation_id}/again")
async def try_again(request: Request, generation_id: str) -> Response:
    """Repeat a generation that failed."""
    generations = studio_of(request).generations
    failed = generations.get(generation_id)
    return render(
        request, "generate/generation.html", generation=generations.start(failed.recipe, compares=failed.compares)
    )


@router.delete("/generations/{generation_id}")
async def cancel_generation(request: Request, generation_id: str) -> Response:
    """Cancel a generation; pages receive an event of it."""
    studio_of(request).generations.cancel(generation_id)
    return Response(status_code=204)


async def _events(request: Request, studio: StudioContext) -> AsyncIterator[bytes]:
    changes = studio.generations.changes()
    coming = asyncio.ensure_future(anext(changes))
    try:
        while True:
            if not (await asyncio.wait([coming], timeout=_HEARTBEAT_SECONDS))[0]:
                yield format_sse_event(comment="heartbeat")
                continue
            generation = coming.result()
            coming = asyncio.ensure_future(anext(changes))
            kind = "over" if generation.is_over else "progress"
            yield format_sse_event(event=f"{kind}-{generation.id}", data_str=_fragment(request, generation))
    finally:
        coming.cancel()


def _fragment(request: Request, generation: Generation) -> str:
    """Render a generation: its progress, or its result."""
    pages: Pages = request.app.state.pages
    if not generation.is_over:
        return pages.text(request, "generate/progress.html", generation=generation)
    error = view_of(pages.language(request), generation.error) if generation.error is not None else None
    return pages.text(
        request, "generate/over.html", generation=generation, error=error,
        can_mend=generation.recipe.edit is None and _can_mend(generation.error), can_retry=_can_retry(generation.error),
    )  # fmt: skip


def _can_retry(error: LithographError | None) -> bool:
    """Return True unless the same request would be refused again."""
    return not isinstance(error, RequestError) or error.is_busy


def _can_mend(error: LithographError | None) -> bool:
    """Return True if the form has a field that the error names."""
    if error is None or (isinstance(error, ServiceError) and error.is_busy):
        return False
    return any(problem.field.partition(".")[0] in PictureRecipe.model_fields for problem in error.problems)
