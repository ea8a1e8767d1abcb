"""The Adapters pages: versions and their origins, the latest version, import and export."""

import asyncio
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Path
from markupsafe import Markup
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from lithograph.client.errors import ServiceError
from lithograph.client.protocol import AdapterStatus
from longcat.adapter.manifest import Manifest
from longcat.adapter.reference import parse_reference
from longcat.errors import AdapterError
from longcat.problem import Problem
from longcat.validation import ProblemValueError
from studio.connection.service_connection import ConnectionState
from studio.context import StudioContext, studio_of
from studio.web.errors import FormError, PageNotFoundError
from studio.web.forms import read_form
from studio.web.pages import render
from studio.web.samples import ShownSample, render_sample

router = APIRouter()

Version = Annotated[int, Path(ge=1, le=999_999_999)]
"""A version in an address, as long as one can be in a reference (``ink@3``)."""
AUTO = "auto"
_RESOLVABLE = ("final", "dev", "embedded")
_MOST_WORDS = 200
_CURVE_PX = (320, 80)
_PROOFS = 24
_KEPT = {"Cache-Control": "private, max-age=31536000, immutable"}
"""Headers of a version's files, which never change; the URL carries the version."""


@dataclass(frozen=True, kw_only=True)
class CatalogueFragment:
    """The rendered list."""

    text: Markup
    digest: str
    """Hash of the text."""


def _adapter_name(text: str) -> str:
    try:
        is_name = parse_reference(text).version is None
    except AdapterError:
        is_name = False
    if not is_name:
        raise ProblemValueError(
            Problem(
                code="adapter_name_not_allowed", template="not allowed as a name",
                remedy_template="use lower-case letters, digits, '.', '_' and '-'",
            )
        )  # fmt: skip
    return text


class _ImportForm(BaseModel):
    """The form of an import."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    name: Annotated[str, AfterValidator(_adapter_name)]
    trigger_words: Annotated[str, Field(max_length=_MOST_WORDS)] = ""
    """Trigger words, separated by commas."""
    file: list[UploadFile]


@router.get("/adapters")
async def adapters_page(request: Request) -> Response:
    """Show all adapters."""
    studio = studio_of(request)
    return render(
        request, "adapters/page.html", catalogue=await _catalogue(request), max_mib=studio.config.max_upload_mib
    )


@router.get("/adapters/list")
async def adapters_list(request: Request, seen: str = "") -> Response:
    """Return the list alone; 204 where it has not changed, so that the page keeps its scroll position."""
    catalogue = await _catalogue(request)
    if catalogue.digest == seen:
        return Response(status_code=204)
    return render(request, "adapters/list.html", catalogue=catalogue)


@router.post("/adapters")
async def import_adapter(request: Request) -> Response:
    """Import another program's file."""
    studio = studio_of(request)
    async with request.form(max_files=2, max_fields=8) as form:
        files = [file for file in form.getlist("file") if isinstance(file, UploadFile) and file.filename]
        fields = read_form(_ImportForm, form, **({"file": files} if files else {}))
        words = [word.strip() for word in re.split("[,，、]", fields.trigger_words) if word.strip()]
        published = await studio.importer.publish(files, fields.name, words, flavour=await _flavour(studio))
    await _refresh_service(studio, fields.name)
    return render(request, "adapters/imported.html", published=published, catalogue=await _catalogue(request))


@router.get("/adapters/{name}/{version}")
async def version_page(request: Request, name: str, version: Version) -> Response:
    """Show one version: its lineage, losses and validation pictures."""
    studio = studio_of(request)
    entry = await asyncio.to_thread(studio.catalogue.get, name)
    manifest = await asyncio.to_thread(studio.catalogue.manifest, name, version)
    validation_images = (await asyncio.to_thread(studio.catalogue.validation_images, manifest))[:_PROOFS]
    losses = manifest.training.losses if manifest.training else ()
    return render(
        request,
        "adapters/version.html",
        entry=entry,
        manifest=manifest,
        curve=_curve(losses),
        curve_px=_CURVE_PX,
        losses=losses,
        grids=[image for image in validation_images if image.key.endswith("grid.png")],
        validation_images=[image for image in validation_images if not image.key.endswith("grid.png")],
    )


@router.get("/adapters/{name}/{version}/file")
async def version_file(request: Request, name: str, version: Version) -> Response:
    """Send the weights in the format that diffusers and other programs read."""
    studio = studio_of(request)
    manifest = await asyncio.to_thread(studio.catalogue.manifest, name, version)
    path = await asyncio.to_thread(studio.catalogue.weights, manifest)
    return FileResponse(path, filename=f"{name}-{version}.safetensors", headers=_KEPT)


@router.get("/adapters/{name}/{version}/pictures/{key:path}")
async def version_picture(request: Request, name: str, version: Version, key: str) -> Response:
    """Send a validation picture."""
    studio = studio_of(request)
    manifest = await asyncio.to_thread(studio.catalogue.manifest, name, version)
    return FileResponse(
        await asyncio.to_thread(studio.catalogue.validation_image, manifest, key), media_type="image/png", headers=_KEPT
    )


@router.get("/adapters/{name}/{version}/samples/{key:path}")
async def version_sample(request: Request, name: str, version: Version, key: str, below: str | None = None) -> Response:
    """Show a validation picture in the viewer, over that of the same prompt by another version."""
    studio = studio_of(request)
    entry = await asyncio.to_thread(studio.catalogue.get, name)
    manifest = await asyncio.to_thread(studio.catalogue.manifest, name, version)
    shown = await asyncio.to_thread(studio.catalogue.described, manifest, key)
    say = request.app.state.pages.language(request)

    def sample_of(made_by: Manifest) -> ShownSample:
        address = f"/adapters/{made_by.name}/{made_by.version}"
        return ShownSample(
            key=str(made_by.version), url=f"{address}/samples/{key}", src=f"{address}/pictures/{key}",
            prompt=shown.prompt or key, label=say("adapters.version", version=made_by.version),
        )  # fmt: skip

    others = [
        sample_of(other) for other in entry.versions if other.version != version and key in other.validation_images
    ]
    return render_sample(request, sample_of(manifest), others, below=below)


@router.post("/adapters/{name}/{version}/latest")
async def make_latest(request: Request, name: str, version: Version) -> Response:
    """Make this version the latest: a rollback, or its reversal."""
    studio = studio_of(request)
    await asyncio.to_thread(studio.catalogue.make_latest, name, version)
    await _refresh_service(studio, name)
    return render(request, "adapters/list.html", catalogue=await _catalogue(request))


@router.post("/adapters/{name}/{action}")
async def pin(request: Request, name: str, action: str) -> Response:
    """Pin or unpin an adapter: a pinned one keeps its newest version loaded in a slot of the service."""
    studio = studio_of(request)
    client = studio.service.client
    match action:
        case "pin":
            await client.pin_adapter(name)
        case "unpin":
            await client.unpin_adapter(name)
        case _:
            raise PageNotFoundError
    return render(request, "adapters/list.html", catalogue=await _catalogue(request))


@router.delete("/adapters/{name}/{version}")
async def remove_version(request: Request, name: str, version: Version) -> Response:
    """Delete one version permanently."""
    return await _remove(request, name, version)


@router.delete("/adapters/{name}")
async def remove_adapter(request: Request, name: str) -> Response:
    """Delete an adapter with all its versions permanently."""
    return await _remove(request, name, None)


async def _remove(request: Request, name: str, version: int | None) -> Response:
    studio = studio_of(request)
    await asyncio.to_thread(studio.catalogue.remove, name, version)
    await _refresh_service(studio, name)
    return render(request, "adapters/list.html", catalogue=await _catalogue(request))


async def _catalogue(request: Request) -> CatalogueFragment:
    """Return the adapters in storage, each with its state in the service."""
    studio, pages = studio_of(request), request.app.state.pages
    served = await _served(studio)
    entries = await asyncio.to_thread(studio.catalogue.all)
    text = pages.text(request, "adapters/catalogue.html", entries=entries, served=served, uri=studio.catalogue.uri)
    return CatalogueFragment(text=text, digest=hashlib.sha256(text.encode()).hexdigest()[:16])


async def _served(studio: StudioContext) -> Mapping[str, AdapterStatus]:
    """Return the service's state of each name; empty while the service does not answer."""
    if studio.service.state is not ConnectionState.READY:
        return {}
    try:
        return {status.name: status for status in (await studio.service.adapters()).adapters}
    except ServiceError:
        return {}


async def _refresh_service(studio: StudioContext, name: str) -> None:
    """Make the service read storage now instead of at its next poll. Ignored if the service does not answer."""
    if studio.service.state is ConnectionState.READY:
        try:
            await studio.service.client.load_adapter(name)
        except ServiceError:
            return


async def _flavour(studio: StudioContext) -> str:
    """Return the flavour of an import: the served one, if its name can be resolved here. Raises ``FormError``."""
    given = studio.config.flavour
    if studio.service.is_own and given != AUTO:
        return given
    if studio.service.info is None:
        await studio.service.poll()
    served = None if studio.service.info is None else str(studio.service.info["model"]["flavour"])
    if served in _RESOLVABLE:
        return served
    if given != AUTO:
        return given
    if served is None:
        raise FormError(
            "model_of_import_unknown", "not known which model the adapter is for: the service has not reported its own yet",
            remedy="try again when the model is loaded, or start the studio with --flavour", field="file",
        )  # fmt: skip
    raise FormError(
        "model_of_import_elsewhere", "not known where the service's model {served} is, which the adapter is for",
        remedy="start the studio with --flavour and its directory or hub id", field="file", served=served,
    )  # fmt: skip


def _curve(losses: Sequence[float]) -> str:
    """Return losses as the points of a polyline in a box of ``_CURVE_PX``."""
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
