"""Edit: a picture to start from, the editor with its mask, and what came of it."""

import asyncio
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from PIL import Image
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from longcat.errors import UserError
from service.wire.editing.fields import IMG2IMG_STRENGTH, INPAINT_STRENGTH
from service.wire.editing.reading import ReadPictures
from studio.context import StudioContext, studio_of
from studio.generate.composer import Composer, adapters_in
from studio.generate.editing.address import editor_url
from studio.generate.editing.form import read_edit
from studio.generate.editing.uploads import read_upload, ready_mask, ready_picture
from studio.generate.form import read_recipe
from studio.generate.gallery import GalleryFilter
from studio.generate.limits import GenerationLimits
from studio.generate.recipe import PictureEdit, PictureRecipe
from studio.web.errors import FormError, PictureNotFoundError
from studio.web.forms import text_of
from studio.web.pages import redirect, render

router = APIRouter()

_NOTES = ("animated", "transparent", "smaller")
_OFFERED = 12
"""Pictures of the gallery that the first page offers."""
_SHOWN = 24
"""Results that the editor shows."""
_KEPT = {"Cache-Control": "private, max-age=31536000, immutable"}
"""A file never changes."""


@router.get("/edit")
async def start_page(request: Request, prompt: str = "") -> Response:
    """Ask for a picture to edit; ``prompt`` goes with it to the editor."""
    pictures = await asyncio.to_thread(studio_of(request).gallery.page, before=None, count=_OFFERED)
    return render(request, "edit/start.html", pictures=pictures, prompt=prompt, limits=_limits(request))


@router.post("/edit")
async def open_picture(request: Request) -> Response:
    """Take a picture, and lead to its editor."""
    studio, limits = studio_of(request), _limits(request)
    async with request.form(max_files=1) as form:
        content = await read_upload(form.get("picture"), "picture", limits)
        prompt = text_of(form, "prompt")
    ready = await asyncio.to_thread(ready_picture, content, limits)
    digest = await asyncio.to_thread(studio.gallery.sources.add, ready.content)
    return redirect(request, editor_url(digest, prompt=prompt, note=ready.notes))


@router.get("/edit/{digest}")
async def editor_page(request: Request, digest: str, like: str = "", prompt: str = "") -> Response:
    """Show the editor; ``like`` is a picture of the gallery whose recipe fills the form, ``note`` what was changed."""
    note = request.query_params.getlist("note")
    studio = studio_of(request)
    recipe = studio.gallery.recipe(like) if like else PictureRecipe(prompt=prompt, adapters=adapters_in(request))
    path = studio.gallery.sources.path(digest)
    if recipe.edit is None or recipe.edit.image != digest:
        recipe = recipe.model_copy(update={"edit": PictureEdit(image=digest)})
    decided = "all" if like else "adapters" if recipe.adapters else "prompt" if prompt else ""
    composer = Composer(recipe=recipe, decided=decided, is_editor=True)
    of_this = GalleryFilter(source=digest)
    context = await composer.context(studio)
    with Image.open(path) as picture:
        size, result = picture.size, _result_size(picture, context["limits"])
    return render(
        request,
        "edit/page.html",
        **context,
        **result,
        digest=digest,
        size=size,
        usual={"masked": INPAINT_STRENGTH, "whole": IMG2IMG_STRENGTH},
        notes=[name for name in _NOTES if name in note],
        pictures=await asyncio.to_thread(studio.gallery.page, before=None, count=_SHOWN, chosen=of_this),
        generations=[g for g in studio.generations.active() if g.recipe.edit and g.recipe.edit.image == digest],
    )


@router.get("/edit/{digest}/picture.png")
async def source_file(request: Request, digest: str) -> Response:
    """Send a picture that is edited, or a mask."""
    return FileResponse(studio_of(request).gallery.sources.path(digest), headers=_KEPT)


@router.get("/edit/{digest}/newest")
async def newest_result(request: Request, digest: str) -> Response:
    """Send the newest picture that was made from this one, beside it; nothing if there is none."""
    gallery = studio_of(request).gallery
    found = await asyncio.to_thread(gallery.page, before=None, count=1, chosen=GalleryFilter(source=digest))
    return render(request, "edit/newest.html", picture=found[0] if found else None)


@router.post("/edit/{digest}")
async def edit(request: Request, digest: str) -> Response:
    """Make the pictures that the form describes."""
    studio, limits = studio_of(request), _limits(request)
    path = studio.gallery.sources.path(digest)
    async with request.form(max_files=1) as form:
        recipe = read_recipe(form, limits)
        mask = await _mask_in(form, studio, limits, await asyncio.to_thread(_size_of, path))
        changed = read_edit(form, limits, image=digest, mask=mask)
    if not limits.takes_pictures:
        raise FormError(
            "service_takes_no_pictures", "the service here only draws from words", remedy="update it", field="picture"
        )
    generation = studio.generations.start(recipe.model_copy(update={"edit": changed, "width": None, "height": None}))
    return render(request, "generate/generation.html", generation=generation)


async def _mask_in(
    form: FormData, studio: StudioContext, limits: GenerationLimits, size: tuple[int, int]
) -> str | None:
    """Store the form's mask and return its checksum; None if it has none, or one that changes nothing."""
    file = form.get("mask")
    if not file:
        return None
    content = await asyncio.to_thread(ready_mask, await read_upload(file, "mask", limits), size, limits)
    return None if content is None else await asyncio.to_thread(studio.gallery.sources.add, content)


def _limits(request: Request) -> GenerationLimits:
    return GenerationLimits.of(studio_of(request).service.info)


def _size_of(path: Any) -> tuple[int, int]:
    try:
        with Image.open(path) as picture:
            return picture.size
    except OSError as error:
        raise PictureNotFoundError from error


def _result_size(picture: Image.Image, limits: GenerationLimits | None) -> Mapping[str, Any]:
    """Return the size of the image that is made of the picture, and the problem of one that the model cannot edit."""
    read = ReadPictures(image=picture, mask=None, image_sha256="", mask_sha256=None)
    known = limits or GenerationLimits()
    try:
        if known.edits:
            size = read.canvas(area_px=known.width**2, max_pixels=known.max_pixels)
        else:
            size = read.size(default_px=known.width, max_pixels=known.max_pixels)
    except UserError as error:
        return {"result": picture.size, "problem": error.problems[0]}
    return {"result": size, "problem": None}
