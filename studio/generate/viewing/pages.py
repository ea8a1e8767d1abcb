"""One picture of the gallery: its recipe, its files, and generating it again, varied or without adapters."""

import asyncio
import json
import secrets

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from studio.context import studio_of
from studio.generate.generations import Generation
from studio.generate.limits import GenerationLimits
from studio.web.errors import PictureNotFoundError
from studio.web.pages import is_fragment, page_behind, redirect, render

router = APIRouter()

_VARIATIONS = 4
_GALLERY_PAGE = "/generate"
_KEPT = {"Cache-Control": "private, max-age=31536000, immutable"}
"""A picture never changes."""


@router.get("/gallery/{picture_id}")
async def picture_page(request: Request, picture_id: str, alone: bool = False) -> Response:
    """Show a picture with its recipe: in the viewer of the current page, or as a page of its own.

    ``alone``: without the picture that it was made from.
    """
    studio = studio_of(request)
    picture = studio.gallery.get(picture_id)
    template = "generate/viewer.html" if is_fragment(request) else "generate/picture.html"
    counterpart = studio.gallery.counterpart(picture_id)
    return render(
        request, template, picture=picture, counterpart=counterpart, in_place=page_behind(request) == _GALLERY_PAGE,
        alone=alone,
    )  # fmt: skip


@router.get("/gallery/{picture_id}/picture.png")
async def picture_file(request: Request, picture_id: str) -> Response:
    """Send the PNG."""
    gallery = studio_of(request).gallery
    path = gallery.file(picture_id, "picture.png")
    name = gallery.get(picture_id).file_name
    return FileResponse(path, filename=name, content_disposition_type="inline", headers=_KEPT)


@router.get("/gallery/{picture_id}/before.png")
async def before_file(request: Request, picture_id: str) -> Response:
    """Send the picture that an edited one was made from."""
    gallery = studio_of(request).gallery
    edit = gallery.get(picture_id).recipe.edit
    if edit is None:
        raise PictureNotFoundError
    return FileResponse(gallery.file(picture_id, f"{edit.image}.png"), headers=_KEPT)


@router.get("/gallery/{picture_id}/thumbnail.webp")
async def thumbnail_file(request: Request, picture_id: str) -> Response:
    """Send the thumbnail."""
    return FileResponse(studio_of(request).gallery.file(picture_id, "thumbnail.webp"), headers=_KEPT)


@router.post("/gallery/{picture_id}/again")
async def again(request: Request, picture_id: str) -> Response:
    """Generate the same recipe: with the same model, the same picture."""
    studio = studio_of(request)
    return _started(request, studio.generations.start(studio.gallery.recipe(picture_id)))


@router.post("/gallery/{picture_id}/vary")
async def vary(request: Request, picture_id: str) -> Response:
    """Generate variations: the same recipe with other seeds."""
    studio = studio_of(request)
    count = min(_VARIATIONS, GenerationLimits.of(studio.service.info).max_images)
    recipe = studio.gallery.recipe(picture_id).with_seed(secrets.randbelow(2**32), num_images=count)
    return _started(request, studio.generations.start(recipe))


@router.get("/gallery/{picture_id}/compare")
async def compare_page(request: Request, picture_id: str) -> Response:
    """Show a picture beside the same one without adapters."""
    studio = studio_of(request)
    picture = studio.gallery.get(picture_id)
    without = studio.gallery.counterpart(picture_id)
    generation = studio.generations.comparing(picture_id)
    return render(request, "generate/compare.html", picture=picture, without=without, generation=generation)


@router.post("/gallery/{picture_id}/compare")
async def compare(request: Request, picture_id: str) -> Response:
    """Generate the same picture without adapters unless that is done or under way, and show both."""
    studio = studio_of(request)
    recipe = studio.gallery.recipe(picture_id)
    if studio.gallery.counterpart(picture_id) is None and studio.generations.comparing(picture_id) is None:
        studio.generations.start(recipe.without_adapters(), compares=picture_id)
    return Response(status_code=204, headers={"HX-Redirect": f"/gallery/{picture_id}/compare"})


@router.delete("/gallery/{picture_id}")
async def remove_picture(request: Request, picture_id: str) -> Response:
    """Delete a picture; the empty reply removes it from the gallery, and other pages are shown again."""
    await asyncio.to_thread(studio_of(request).gallery.remove, picture_id)
    return Response(headers={} if page_behind(request) == _GALLERY_PAGE else {"HX-Refresh": "true"})


@router.post("/gallery/{picture_id}/favourite")
async def mark_favourite(request: Request, picture_id: str) -> Response:
    """Mark a picture as a favourite, or no longer."""
    gallery = studio_of(request).gallery
    picture = gallery.mark(picture_id, favourite=not gallery.get(picture_id).is_favourite)
    news = {"favourite-changed": {"picture": picture.id, "isFavourite": picture.is_favourite}}
    return Response(status_code=204, headers={"HX-Trigger": json.dumps(news)})


def _started(request: Request, generation: Generation) -> Response:
    """Return a generation for the gallery; a viewer on another page leads there."""
    if page_behind(request) != _GALLERY_PAGE:
        return redirect(request, _GALLERY_PAGE)
    return render(request, "generate/generation.html", generation=generation)
