"""Pages with the origin of a picture, of the gallery or of any file, and whether it is intact."""

import asyncio

from fastapi import APIRouter
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import Response

from service.wire.provenance.inspection import origin_of
from studio.context import studio_of
from studio.web.errors import FormError
from studio.web.pages import is_fragment, render

router = APIRouter()


@router.get("/verify")
async def verify_page(request: Request) -> Response:
    """Ask for a picture file."""
    return render(request, "verify/page.html", origin=None, name="")


@router.post("/verify")
async def verify_file(request: Request) -> Response:
    """Show what a file says; it is not kept. Raises ``RecipeError`` for one that is no picture."""
    async with request.form(max_files=1, max_fields=1) as form:
        file = form.get("picture")
        if not isinstance(file, UploadFile) or not file.filename:
            raise FormError("no_picture_sent", "no file", remedy="choose a PNG, JPEG or WebP", field="picture")
        name = file.filename
        origin = await asyncio.to_thread(origin_of, file.file, name=name, trust=_roots(request))
    template = "verify/result.html" if is_fragment(request) else "verify/page.html"
    return render(request, template, origin=origin, name=name)


@router.get("/gallery/{picture_id}/origin")
async def origin_of_picture(request: Request, picture_id: str) -> Response:
    """Show what the file of a picture of the gallery says."""
    path = studio_of(request).gallery.file(picture_id, "picture.png")
    origin = await asyncio.to_thread(origin_of, path, name=path.name, trust=_roots(request))
    return render(request, "verify/origin.html", origin=origin)


def _roots(request: Request) -> str | None:
    return studio_of(request).config.trusted_roots
