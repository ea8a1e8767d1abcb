"""Generate: a prompt, what is being drawn, and the gallery."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass

from fastapi import APIRouter
from fastapi.sse import format_sse_event
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response, StreamingResponse

from lithograph.client.errors import ServiceError
from longcat.model.shape import GRID_PX
from studio.connection.service_connection import ConnectionState
from studio.context import StudioContext, studio_of
from studio.generate.form import LARGEST_GUIDANCE, LARGEST_SCALE, read_recipe
from studio.generate.generations import Generation
from studio.generate.limits import GenerationLimits
from studio.generate.recipe import PictureRecipe, ScaledAdapter
from studio.web.error_pages import view_of
from studio.web.pages import Pages, is_fragment, render

router = APIRouter()

_PAGE_PICTURES = 24
_VARIATIONS = 4
_HEARTBEAT_SECONDS = 15.0
"""Between signs of life on a stream where nothing happens: proxies close silent ones."""
_KEPT = {"Cache-Control": "private, max-age=31536000, immutable"}
"""A picture never changes."""


@dataclass(frozen=True, kw_only=True)
class AdapterOption:
    """A line of the form."""

    name: str
    trigger_words: tuple[str, ...]
    is_chosen: bool
    scale: float


@router.get("/generate")
async def generate_page(request: Request, like: str | None = None) -> Response:
    """The page; ``adapter`` is to be tried, ``like`` is a picture whose recipe fills the form."""
    studio = studio_of(request)
    recipe = studio.gallery.get(like).recipe if like else PictureRecipe(prompt="")
    asked = _asked(request)  # by a page whose model was loading: of all its adapters, with their scales
    recipe = recipe.model_copy(update={"adapters": asked if is_fragment(request) else (*recipe.adapters, *asked)})
    limits = GenerationLimits.of(studio.service.info) if studio.service.info is not None else None
    pictures = await asyncio.to_thread(studio.gallery.page, before=None, count=_PAGE_PICTURES)
    return render(
        request,
        "generate/page.html",
        limits=limits,
        recipe=recipe,
        like=like,
        decided="all" if like else "adapters" if asked else "",
        grid_px=GRID_PX,
        largest_guidance=LARGEST_GUIDANCE,
        choices=await _choices(studio, recipe.adapters),
        largest_scale=LARGEST_SCALE,
        generations=studio.generations.active(),
        pictures=pictures,
        has_more=len(pictures) == _PAGE_PICTURES,
    )


@router.post("/generate")
async def generate(request: Request) -> Response:
    """Draw what the form says."""
    studio = studio_of(request)
    async with request.form() as form:
        recipe = read_recipe(form, GenerationLimits.of(studio.service.info))
    return render(request, "generate/drawing.html", generation=studio.generations.start(recipe))


@router.get("/generate/adapters")
async def adapter_choices(request: Request, seen: str = "") -> Response:
    """The adapters of the form, if there are others than it shows; what was chosen stays so."""
    studio = studio_of(request)
    choices = await _choices(studio, _asked(request))
    if ",".join(choice.name for choice in choices or ()) == seen:
        return Response(status_code=204)
    return render(request, "generate/adapters.html", choices=choices, largest_scale=LARGEST_SCALE)


@router.get("/drawings/events")
async def drawing_events(request: Request) -> Response:
    """Server-sent events: fragments of the page for whatever is being drawn."""
    return StreamingResponse(_events(request, studio_of(request)), media_type="text/event-stream")


@router.get("/drawings/{drawing_id}")
async def drawing_state(request: Request, drawing_id: str) -> Response:
    """Return the result of a generation; nothing while it is under way."""
    generation = studio_of(request).generations.get(drawing_id)
    if not generation.is_over:
        return Response(status_code=204)
    return HTMLResponse(_fragment(request, generation))


@router.post("/drawings/{drawing_id}/again")
async def try_again(request: Request, drawing_id: str) -> Response:
    """Draw what could not be drawn."""
    generations = studio_of(request).generations
    failed = generations.get(drawing_id)
    return render(
        request, "generate/drawing.html", generation=generations.start(failed.recipe, compares=failed.compares)
    )


@router.delete("/drawings/{drawing_id}")
async def cancel_drawing(request: Request, drawing_id: str) -> Response:
    """Stop drawing; the page hears of it as of everything else."""
    studio_of(request).generations.cancel(drawing_id)
    return Response(status_code=204)


@router.get("/gallery")
async def older_pictures(request: Request, before: str) -> Response:
    """More of the gallery."""
    gallery = studio_of(request).gallery
    pictures = await asyncio.to_thread(gallery.page, before=before, count=_PAGE_PICTURES)
    return render(request, "generate/tiles.html", pictures=pictures, has_more=len(pictures) == _PAGE_PICTURES)


@router.get("/gallery/{picture_id}")
async def picture_page(request: Request, picture_id: str) -> Response:
    """One picture with its recipe: over the page that is there, or as a page of its own."""
    studio = studio_of(request)
    picture = studio.gallery.get(picture_id)
    template = "generate/viewer.html" if is_fragment(request) else "generate/picture.html"
    counterpart = studio.gallery.counterpart(picture_id)
    return render(request, template, picture=picture, counterpart=counterpart)


@router.get("/gallery/{picture_id}/picture.png")
async def picture_file(request: Request, picture_id: str) -> Response:
    """The PNG."""
    gallery = studio_of(request).gallery
    path = gallery.file(picture_id, "picture.png")
    name = gallery.get(picture_id).file_name
    return FileResponse(path, filename=name, content_disposition_type="inline", headers=_KEPT)


@router.get("/gallery/{picture_id}/thumbnail.webp")
async def thumbnail_file(request: Request, picture_id: str) -> Response:
    """A small copy."""
    return FileResponse(studio_of(request).gallery.file(picture_id, "thumbnail.webp"), headers=_KEPT)


@router.post("/gallery/{picture_id}/again")
async def again(request: Request, picture_id: str) -> Response:
    """Draw the same recipe: on the same model the same picture."""
    studio = studio_of(request)
    generation = studio.generations.start(studio.gallery.get(picture_id).recipe)
    return render(request, "generate/drawing.html", generation=generation)


@router.post("/gallery/{picture_id}/vary")
async def vary(request: Request, picture_id: str) -> Response:
    """Draw the same from other noise."""
    studio = studio_of(request)
    count = min(_VARIATIONS, GenerationLimits.of(studio.service.info).max_images)
    recipe = studio.gallery.get(picture_id).recipe.with_seed(secrets.randbelow(2**32), num_images=count)
    return render(request, "generate/drawing.html", generation=studio.generations.start(recipe))


@router.get("/gallery/{picture_id}/compare")
async def compare_page(request: Request, picture_id: str) -> Response:
    """A picture with its adapters beside the same without."""
    studio = studio_of(request)
    picture = studio.gallery.get(picture_id)
    without = studio.gallery.counterpart(picture_id)
    generation = studio.generations.comparing(picture_id)
    return render(request, "generate/compare.html", picture=picture, without=without, generation=generation)


@router.post("/gallery/{picture_id}/compare")
async def compare(request: Request, picture_id: str) -> Response:
    """Draw the same without adapters, unless that is done or under way; go to where both are."""
    studio = studio_of(request)
    picture = studio.gallery.get(picture_id)
    if studio.gallery.counterpart(picture_id) is None and studio.generations.comparing(picture_id) is None:
        studio.generations.start(picture.recipe.without_adapters(), compares=picture_id)
    return Response(status_code=204, headers={"HX-Redirect": f"/gallery/{picture_id}/compare"})


@router.delete("/gallery/{picture_id}")
async def remove_picture(request: Request, picture_id: str) -> Response:
    """Forget a picture; its place on the page becomes empty."""
    await asyncio.to_thread(studio_of(request).gallery.remove, picture_id)
    return Response(status_code=200)


async def _choices(studio: StudioContext, chosen: tuple[ScaledAdapter, ...]) -> list[AdapterOption] | None:
    """The adapters that the service can apply now and those that are chosen; None if it has no answer and none is chosen."""
    scales = {adapter.name: adapter.scale for adapter in chosen}
    words = await _trigger_words(studio)
    if words is None and not chosen:
        return None
    words = words or {}
    names = dict.fromkeys([*scales, *words])
    return [
        AdapterOption(
            name=name,
            trigger_words=words.get(name.partition("@")[0], ()),
            is_chosen=name in scales,
            scale=scales.get(name, 1.0),
        )
        for name in names
    ]


async def _trigger_words(studio: StudioContext) -> dict[str, tuple[str, ...]] | None:
    """Return the trigger words of the served adapters; None if the service has none or does not answer."""
    if studio.service.state is not ConnectionState.READY:
        return None
    try:
        report = await studio.service.adapters()
    except ServiceError:
        return None
    return {adapter.name: adapter.trigger_words for adapter in report.adapters if adapter.version is not None}


async def _events(request: Request, studio: StudioContext) -> AsyncIterator[bytes]:
    changes = studio.generations.changes()
    coming = asyncio.ensure_future(anext(changes))
    try:
        while True:
            if not (await asyncio.wait([coming], timeout=_HEARTBEAT_SECONDS))[0]:
                yield format_sse_event(comment="still here")
                continue
            generation = coming.result()
            coming = asyncio.ensure_future(anext(changes))
            kind = "over" if generation.is_over else "progress"
            yield format_sse_event(event=f"{kind}-{generation.id}", data_str=_fragment(request, generation))
    finally:
        coming.cancel()


def _fragment(request: Request, generation: Generation) -> str:
    """A drawing as the page shows it: how far it is, or what became of it."""
    pages: Pages = request.app.state.pages
    if not generation.is_over:
        return pages.text(request, "generate/progress.html", generation=generation)
    error = view_of(pages.language(request), generation.error) if generation.error is not None else None
    return pages.text(request, "generate/over.html", generation=generation, error=error)


def _asked(request: Request) -> tuple[ScaledAdapter, ...]:
    """The adapters that an address names, with the scales that it says."""
    query = request.query_params
    return tuple(ScaledAdapter(name=n, scale=_scale(query.get(f"scale:{n}", ""))) for n in query.getlist("adapter"))


def _scale(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 1.0
