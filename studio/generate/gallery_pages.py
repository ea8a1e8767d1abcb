"""The gallery: pages of it, searched and filtered; several pictures deleted, downloaded or marked at once."""

import asyncio
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse

from studio.context import StudioContext, studio_of
from studio.generate.gallery import Gallery, GalleryFilter, GalleryPicture
from studio.generate.zip_stream import zipped
from studio.web.errors import FormError, PictureNotFoundError
from studio.web.pages import is_fragment, render

router = APIRouter()

_PAGE_PICTURES = 24
_REMEMBERED_PROMPTS = 20
_MOST_SELECTED = 10_000
_FILTER_FIELDS = ("words", "by", "favourites")


def filter_in(request: Request) -> GalleryFilter:
    """Return the choice of pictures that an address names."""
    return _filter_of(request.query_params)


async def gallery_page(studio: StudioContext, chosen: GalleryFilter, *, before: str | None = None) -> dict[str, Any]:
    """Return the values of the gallery's templates: one page of it, from the newest or from a picture on."""
    gallery = studio.gallery
    pictures = await asyncio.to_thread(gallery.page, before=before, count=_PAGE_PICTURES, chosen=chosen)
    return {
        "pictures": pictures,
        "has_more": len(pictures) == _PAGE_PICTURES,
        "chosen": chosen,
        "generations": studio.generations.active(),
        "gallery_adapters": [] if before else await asyncio.to_thread(gallery.adapters),
    }


@router.get("/gallery")
async def filtered_pictures(request: Request, before: str | None = None) -> Response:
    """Send the filtered gallery; ``before``: the pictures older than that one."""
    if not is_fragment(request):
        query = request.url.query
        return RedirectResponse(f"/generate?{query}" if query else "/generate", status_code=303)
    chosen = filter_in(request)
    template = "generate/gallery.html" if before is None else "generate/tiles.html"
    reply = render(request, template, **await gallery_page(studio_of(request), chosen, before=before))
    if before is None:  # a reload shows the same choice
        reply.headers["HX-Replace-Url"] = "/generate" if chosen.is_open else f"/generate?{request.url.query}"
    return reply


@router.get("/generate/history")
async def prompt_history(request: Request) -> Response:
    """Send the prompts of the last pictures."""
    prompts = await asyncio.to_thread(studio_of(request).gallery.prompts, count=_REMEMBERED_PROMPTS)
    return render(request, "generate/history.html", prompts=prompts)


@router.post("/selection/download")
async def download_selected(request: Request) -> Response:
    """Send a zip of the selected pictures."""
    gallery = studio_of(request).gallery
    pictures, _ = await _selected(request, gallery)
    files = [
        (f"{number:04d}-{picture.file_name}", gallery.file(picture.id, "picture.png"))
        for number, picture in enumerate(pictures, start=1)
    ]
    headers = {"Content-Disposition": 'attachment; filename="lithograph-pictures.zip"'}
    return StreamingResponse(zipped(files), media_type="application/zip", headers=headers)


@router.post("/selection/delete")
async def delete_selected(request: Request) -> Response:
    """Delete the selected pictures."""
    gallery = studio_of(request).gallery
    pictures, chosen = await _selected(request, gallery)
    for picture in pictures:
        await asyncio.to_thread(gallery.remove, picture.id)
    return await _after_change(request, chosen)


@router.post("/selection/favourite")
async def mark_selected(request: Request) -> Response:
    """Mark the selected pictures as favourites; if all of them are, no longer."""
    gallery = studio_of(request).gallery
    pictures, chosen = await _selected(request, gallery)
    marks = not all(picture.is_favourite for picture in pictures)
    for picture in pictures:
        await asyncio.to_thread(gallery.mark, picture.id, favourite=marks)
    return await _after_change(request, chosen)


async def _selected(request: Request, gallery: Gallery) -> tuple[list[GalleryPicture], GalleryFilter]:
    """Return the selected pictures that exist, and the filter of the page. Raises ``FormError`` if there are none."""
    async with request.form(max_fields=_MOST_SELECTED) as form:
        identities = [value for value in form.getlist("picture") if isinstance(value, str)]
        fields = {name: value for name in _FILTER_FIELDS if isinstance(value := form.get(name), str)}
    pictures = await asyncio.to_thread(_existing, gallery, identities)
    if not pictures:
        raise FormError("nothing_selected", "no picture is selected", remedy="select some", field="picture")
    return pictures, _filter_of(fields)


def _existing(gallery: Gallery, identities: list[str]) -> list[GalleryPicture]:
    found = []
    for identity in dict.fromkeys(identities):
        try:
            found.append(gallery.get(identity))
        except PictureNotFoundError:  # deleted meanwhile, on another page
            continue
    return found


async def _after_change(request: Request, chosen: GalleryFilter) -> Response:
    if is_fragment(request):
        return render(request, "generate/gallery.html", **await gallery_page(studio_of(request), chosen))
    return RedirectResponse("/generate", status_code=303)


def _filter_of(fields: Mapping[str, str]) -> GalleryFilter:
    return GalleryFilter(
        words=fields.get("words", ""),
        adapter=fields.get("by", ""),
        favourites=fields.get("favourites", "") == "on",
    )
