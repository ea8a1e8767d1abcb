"""Adapters: what there is, where each came from, which version its name means; others' files in, ours out."""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fastapi import APIRouter
from markupsafe import Markup
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from lithograph.answers import AdapterStatus, ServiceError
from longcat.adapter import parse_reference
from longcat.errors import AdapterError
from studio.forms import FormReader
from studio.link import LinkState
from studio.page_error import PageError
from studio.pages import render
from studio.state import Studio, studio_of

router = APIRouter()

_MOST_WORDS = 200
_CURVE_PX = (320, 80)
_PROOFS = 24
_KEPT = {"Cache-Control": "private, max-age=31536000, immutable"}
"""A version never changes; its address carries its number."""


@dataclass(frozen=True, kw_only=True)
class ShelfText:
    """The list as it is shown."""

    text: Markup
    digest: str
    """Of the text."""


@router.get("/adapters")
async def adapters_page(request: Request) -> Response:
    """All of them."""
    studio = studio_of(request)
    return render(request, "adapters/page.html", shelf=await _shelf(request), max_mib=studio.config.max_upload_mib)


@router.get("/adapters/list")
async def adapters_list(request: Request, seen: str = "") -> Response:
    """The list alone, unless it is as it was: what was just published appears, and nobody loses their place for nothing."""
    shelf = await _shelf(request)
    return Response(status_code=204) if shelf.digest == seen else render(request, "adapters/list.html", shelf=shelf)


@router.post("/adapters")
async def import_adapter(request: Request) -> Response:
    """Publish another program's file."""
    studio = studio_of(request)
    async with request.form(max_files=2, max_fields=8) as form:
        reader = FormReader(form)
        name = reader.text("name", is_required=True)
        words = [word.strip() for word in reader.text("trigger_words", longest=_MOST_WORDS).split(",") if word.strip()]
        if name and not _is_name(name):
            reader.refuse("name", "error.adapter_name", value=name)
        files = [file for file in form.getlist("file") if isinstance(file, UploadFile) and file.filename]
        if not files:
            reader.refuse("file", "error.missing")
        reader.check()
        said = await studio.importer.publish(files, name, words, flavour=_flavour(studio))
    await _look_again(studio, name)
    return render(request, "adapters/imported.html", said=said, shelf=await _shelf(request))


@router.get("/adapters/{name}/{version:int}")
async def version_page(request: Request, name: str, version: int) -> Response:
    """One version: its lineage, its losses and its pictures."""
    studio = studio_of(request)
    shelved = await asyncio.to_thread(studio.shelf.get, name)
    manifest = await asyncio.to_thread(studio.shelf.manifest, name, version)
    proofs = (await asyncio.to_thread(studio.shelf.proofs, manifest))[:_PROOFS]
    losses = manifest.training.losses if manifest.training else ()
    return render(
        request,
        "adapters/version.html",
        shelved=shelved,
        manifest=manifest,
        curve=_curve(losses),
        curve_px=_CURVE_PX,
        losses=losses,
        grids=[proof for proof in proofs if proof.key.endswith("grid.png")],
        proofs=[proof for proof in proofs if not proof.key.endswith("grid.png")],
    )


@router.get("/adapters/{name}/{version:int}/file")
async def version_file(request: Request, name: str, version: int) -> Response:
    """The weights, as diffusers and other programs read them."""
    studio = studio_of(request)
    manifest = await asyncio.to_thread(studio.shelf.manifest, name, version)
    path = await asyncio.to_thread(studio.shelf.weights, manifest)
    return FileResponse(path, filename=f"{name}-{version}.safetensors", headers=_KEPT)


@router.get("/adapters/{name}/{version:int}/pictures/{key:path}")
async def version_picture(request: Request, name: str, version: int, key: str) -> Response:
    """A validation picture."""
    studio = studio_of(request)
    manifest = await asyncio.to_thread(studio.shelf.manifest, name, version)
    return FileResponse(
        await asyncio.to_thread(studio.shelf.proof, manifest, key), media_type="image/png", headers=_KEPT
    )


@router.post("/adapters/{name}/{version:int}/latest")
async def make_latest(request: Request, name: str, version: int) -> Response:
    """Let the name mean this version: back, or forward again."""
    studio = studio_of(request)
    await asyncio.to_thread(studio.shelf.make_latest, name, version)
    await _look_again(studio, name)
    return render(request, "adapters/list.html", shelf=await _shelf(request))


@router.post("/adapters/{name}/{action}")
async def pin(request: Request, name: str, action: str) -> Response:
    """Keep an adapter's newest version ready in a slot of the service, or no longer."""
    studio = studio_of(request)
    client = studio.service.client
    match action:
        case "pin":
            await client.pin_adapter(name)
        case "unpin":
            await client.unpin_adapter(name)
        case _:
            raise PageError("error.not_found", status=404)
    return render(request, "adapters/list.html", shelf=await _shelf(request))


@router.delete("/adapters/{name}/{version:int}")
async def remove_version(request: Request, name: str, version: int) -> Response:
    """Remove one version for good."""
    return await _remove(request, name, version)


@router.delete("/adapters/{name}")
async def remove_adapter(request: Request, name: str) -> Response:
    """Remove an adapter, all its versions, for good."""
    return await _remove(request, name, None)


async def _remove(request: Request, name: str, version: int | None) -> Response:
    studio = studio_of(request)
    await asyncio.to_thread(studio.shelf.remove, name, version)
    await _look_again(studio, name)
    return render(request, "adapters/list.html", shelf=await _shelf(request))


async def _shelf(request: Request) -> ShelfText:
    """What storage has, and what the service makes of it."""
    studio, pages = studio_of(request), request.app.state.pages
    served = await _served(studio)
    shelved = await asyncio.to_thread(studio.shelf.all)
    text = pages.text(request, "adapters/shelf.html", shelved=shelved, served=served, uri=studio.shelf.uri)
    return ShelfText(text=Markup(text), digest=hashlib.sha256(text.encode()).hexdigest()[:16])  # noqa: S704 - a template's


async def _served(studio: Studio) -> Mapping[str, AdapterStatus]:
    """What the service says of each name; nothing while it does not answer."""
    if studio.service.state is not LinkState.READY:
        return {}
    try:
        return {status.name: status for status in (await studio.service.adapters()).adapters}
    except ServiceError:
        return {}


async def _look_again(studio: Studio, name: str) -> None:
    """Have the service see a change now and not in a few seconds; where it does not answer it will see it later."""
    if studio.service.state is LinkState.READY:
        try:
            await studio.service.client.load_adapter(name)
        except ServiceError:
            return


def _flavour(studio: Studio) -> str:
    """What an import belongs to: what the service serves, where that is a name that can be resolved here."""
    info = studio.service.info
    if studio.service.is_own or info is None or info["model"]["flavour"] not in ("final", "dev", "embedded"):
        return studio.config.flavour
    return str(info["model"]["flavour"])


def _is_name(text: str) -> bool:
    try:
        return parse_reference(text).version is None
    except AdapterError:
        return False


def _curve(losses: Sequence[float]) -> str:
    """Losses as the points of a line, in a box of ``_CURVE_PX``."""
    if len(losses) < 2:
        return ""
    width, height = _CURVE_PX
    low, high = min(losses), max(losses)
    spread = (high - low) or 1.0
    margin = 4
    return " ".join(
        f"{i * width / (len(losses) - 1):.1f},{margin + (high - loss) / spread * (height - 2 * margin):.1f}"
        for i, loss in enumerate(losses)
    )
