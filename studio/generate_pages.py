"""Generate: a prompt, what is being drawn, and the gallery."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass

from fastapi import APIRouter
from fastapi.sse import format_sse_event
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response, StreamingResponse

from lithograph.answers import ServiceError
from longcat.adapter import parse_reference
from longcat.errors import AdapterError
from studio.canvas import GRID_PX, Canvas
from studio.drawings import Drawing
from studio.failures import said_of
from studio.forms import FormReader
from studio.link import LinkState
from studio.pages import Pages, is_fragment, render
from studio.recipe import LARGEST_SEED, AdapterUse, Recipe
from studio.state import Studio, studio_of

router = APIRouter()

_PAGE_PICTURES = 24
_VARIATIONS = 4
_LARGEST_SCALE = 2.0
_LARGEST_GUIDANCE = 30.0
_HEARTBEAT_SECONDS = 15.0
"""Between signs of life on a stream where nothing happens: proxies close silent ones."""
_KEPT = {"Cache-Control": "private, max-age=31536000, immutable"}
"""A picture never changes."""


@dataclass(frozen=True, kw_only=True)
class AdapterChoice:
    """A line of the form."""

    name: str
    trigger_words: tuple[str, ...]
    is_chosen: bool
    scale: float


@router.get("/generate")
async def generate_page(request: Request, like: str | None = None) -> Response:
    """The page; ``adapter`` is to be tried, ``like`` is a picture whose recipe fills the form."""
    studio = studio_of(request)
    recipe = studio.gallery.get(like).recipe if like else Recipe(prompt="")
    asked = _asked(request)  # by a page whose model was loading: of all its adapters, with their scales
    recipe = recipe.model_copy(update={"adapters": asked if is_fragment(request) else (*recipe.adapters, *asked)})
    canvas = Canvas.of(studio.service.info) if studio.service.info is not None else None
    pictures = await asyncio.to_thread(studio.gallery.page, before=None, count=_PAGE_PICTURES)
    return render(
        request,
        "generate/page.html",
        canvas=canvas,
        recipe=recipe,
        like=like,
        grid_px=GRID_PX,
        largest_guidance=_LARGEST_GUIDANCE,
        choices=await _choices(studio, recipe.adapters),
        largest_scale=_LARGEST_SCALE,
        drawings=studio.drawings.active(),
        pictures=pictures,
        has_more=len(pictures) == _PAGE_PICTURES,
    )


@router.post("/generate")
async def generate(request: Request) -> Response:
    """Draw what the form says."""
    studio = studio_of(request)
    recipe = _recipe_of(await request.form(), Canvas.of(studio.service.info))
    return render(request, "generate/drawing.html", drawing=studio.drawings.start(recipe))


@router.get("/generate/adapters")
async def adapter_choices(request: Request, seen: str = "") -> Response:
    """The adapters of the form, if there are others than it shows; what was chosen stays so."""
    studio = studio_of(request)
    choices = await _choices(studio, _asked(request))
    if ",".join(choice.name for choice in choices or ()) == seen:
        return Response(status_code=204)
    return render(request, "generate/adapters.html", choices=choices, largest_scale=_LARGEST_SCALE)


@router.get("/drawings/events")
async def drawing_events(request: Request) -> Response:
    """Server-sent events: fragments of the page for whatever is being drawn."""
    return StreamingResponse(_events(request, studio_of(request)), media_type="text/event-stream")


@router.get("/drawings/{drawing_id}")
async def drawing_state(request: Request, drawing_id: str) -> Response:
    """What became of a drawing; nothing as long as it is under way."""
    drawing = studio_of(request).drawings.get(drawing_id)
    if not drawing.is_over:
        return Response(status_code=204)
    return HTMLResponse(_fragment(request, drawing))


@router.delete("/drawings/{drawing_id}")
async def cancel_drawing(request: Request, drawing_id: str) -> Response:
    """Stop drawing; the page hears of it as of everything else."""
    studio_of(request).drawings.cancel(drawing_id)
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
    drawing = studio.drawings.start(studio.gallery.get(picture_id).recipe)
    return render(request, "generate/drawing.html", drawing=drawing)


@router.post("/gallery/{picture_id}/vary")
async def vary(request: Request, picture_id: str) -> Response:
    """Draw the same from other noise."""
    studio = studio_of(request)
    count = min(_VARIATIONS, Canvas.of(studio.service.info).max_images)
    recipe = studio.gallery.get(picture_id).recipe.with_seed(secrets.randbelow(2**32), num_images=count)
    return render(request, "generate/drawing.html", drawing=studio.drawings.start(recipe))


@router.get("/gallery/{picture_id}/compare")
async def compare_page(request: Request, picture_id: str) -> Response:
    """A picture with its adapters beside the same without."""
    studio = studio_of(request)
    picture = studio.gallery.get(picture_id)
    without = studio.gallery.counterpart(picture_id)
    drawing = studio.drawings.comparing(picture_id)
    return render(request, "generate/compare.html", picture=picture, without=without, drawing=drawing)


@router.post("/gallery/{picture_id}/compare")
async def compare(request: Request, picture_id: str) -> Response:
    """Draw the same without adapters, unless that is done or under way; go to where both are."""
    studio = studio_of(request)
    picture = studio.gallery.get(picture_id)
    if studio.gallery.counterpart(picture_id) is None and studio.drawings.comparing(picture_id) is None:
        studio.drawings.start(picture.recipe.without_adapters(), compares=picture_id)
    return Response(status_code=204, headers={"HX-Redirect": f"/gallery/{picture_id}/compare"})


@router.delete("/gallery/{picture_id}")
async def remove_picture(request: Request, picture_id: str) -> Response:
    """Forget a picture; its place on the page becomes empty."""
    await asyncio.to_thread(studio_of(request).gallery.remove, picture_id)
    return Response(status_code=200)


def _recipe_of(form: FormData, canvas: Canvas) -> Recipe:
    """What the form says. Raises ``PageError`` naming every field that is wrong."""
    reader = FormReader(form)
    adapters = [
        AdapterUse(name=name, scale=reader.number(f"scale:{name}", least=-_LARGEST_SCALE, most=_LARGEST_SCALE) or 0.0)
        for name in form.getlist("adapter")
        if isinstance(name, str) and _is_reference(name)
    ]
    recipe = Recipe(
        prompt=reader.text("prompt", is_required=True),
        negative_prompt=reader.text("negative_prompt"),
        width=reader.whole("width", least=GRID_PX, most=canvas.longest_px, multiple_of=GRID_PX),
        height=reader.whole("height", least=GRID_PX, most=canvas.longest_px, multiple_of=GRID_PX),
        steps=reader.whole("steps", least=1, most=canvas.max_steps),
        guidance_scale=reader.number("guidance_scale", least=0, most=_LARGEST_GUIDANCE),
        seed=reader.whole("seed", least=0, most=LARGEST_SEED),
        num_images=reader.whole("num_images", least=1, most=canvas.max_images) or 1,
        adapters=tuple(adapters),
    )
    width, height = recipe.width or canvas.width, recipe.height or canvas.height
    if not reader.problems and width * height > canvas.max_pixels:
        reader.refuse("width", "error.area", width=width, height=height, most=canvas.max_pixels)
    reader.check()
    return recipe


async def _choices(studio: Studio, chosen: tuple[AdapterUse, ...]) -> list[AdapterChoice] | None:
    """The adapters that the service can apply now and those that are chosen; None if it has no answer and none is chosen."""
    scales = {adapter.name: adapter.scale for adapter in chosen}
    words = await _trigger_words(studio)
    if words is None and not chosen:
        return None
    words = words or {}
    names = dict.fromkeys([*scales, *words])
    return [
        AdapterChoice(
            name=name,
            trigger_words=words.get(name.partition("@")[0], ()),
            is_chosen=name in scales,
            scale=scales.get(name, 1.0),
        )
        for name in names
    ]


async def _trigger_words(studio: Studio) -> dict[str, tuple[str, ...]] | None:
    """Of the adapters that are served; None if the service has none, or no answer."""
    if studio.service.state is not LinkState.READY:
        return None
    try:
        report = await studio.service.adapters()
    except ServiceError:
        return None
    return {adapter.name: adapter.trigger_words for adapter in report.adapters if adapter.version is not None}


async def _events(request: Request, studio: Studio) -> AsyncIterator[bytes]:
    changes = studio.drawings.changes()
    coming = asyncio.ensure_future(anext(changes))
    try:
        while True:
            if not (await asyncio.wait([coming], timeout=_HEARTBEAT_SECONDS))[0]:
                yield format_sse_event(comment="still here")
                continue
            drawing = coming.result()
            coming = asyncio.ensure_future(anext(changes))
            kind = "over" if drawing.is_over else "progress"
            yield format_sse_event(event=f"{kind}-{drawing.id}", data_str=_fragment(request, drawing))
    finally:
        coming.cancel()


def _fragment(request: Request, drawing: Drawing) -> str:
    """A drawing as the page shows it: how far it is, or what became of it."""
    pages: Pages = request.app.state.pages
    if not drawing.is_over:
        return pages.text(request, "generate/progress.html", drawing=drawing)
    said = said_of(pages.language(request), drawing.error) if drawing.error is not None else None
    return pages.text(request, "generate/over.html", drawing=drawing, said=said)


def _asked(request: Request) -> tuple[AdapterUse, ...]:
    """The adapters that an address names, with the scales that it says."""
    query = request.query_params
    return tuple(AdapterUse(name=n, scale=_scale(query.get(f"scale:{n}", ""))) for n in query.getlist("adapter"))


def _scale(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 1.0


def _is_reference(name: str) -> bool:
    try:
        parse_reference(name)
    except AdapterError:
        return False
    return True
