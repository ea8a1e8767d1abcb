"""The form of the Generate page: filled from a picture, a PNG file or a refused request, and the parts that change."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from lithograph.client.errors import ServiceError
from lithograph.client.protocol import AdapterStatus
from longcat.adapter.manifest import Sampling
from longcat.model.shape import GRID_PX
from longcat.validation import problems_of
from service.wire.picture import recipe_in
from studio.connection.service_connection import ConnectionState
from studio.context import StudioContext, studio_of
from studio.generate.editing.address import editor_url
from studio.generate.form import LARGEST_GUIDANCE
from studio.generate.limits import GenerationLimits
from studio.generate.recipe import LARGEST_SCALE, PictureRecipe, ScaledAdapter
from studio.web.error_pages import view_of
from studio.web.errors import FormError
from studio.web.forms import text_of
from studio.web.pages import redirect, render

router = APIRouter(prefix="/generate")


@dataclass(frozen=True, kw_only=True)
class AdapterOption:
    """A line of the form."""

    name: str
    trigger_words: tuple[str, ...]
    sampling: Sampling | None
    """Steps and guidance that it was made for."""
    is_chosen: bool
    scale: float


@dataclass(frozen=True, kw_only=True)
class Composer:
    """The form as a page shows it."""

    recipe: PictureRecipe
    decided: str = ""
    """Part that the request decides, instead of the browser's kept values: ``all``, ``adapters``, ``prompt``, or none."""
    problems: Mapping[str, str] = field(default_factory=dict)
    """Problems by field, in the reader's language."""
    is_editor: bool = False
    """The form of the editor, whose pictures have the size of the one that is edited."""

    async def context(self, studio: StudioContext) -> dict[str, Any]:
        """Return the values of the form's templates."""
        choices = await choices_of(studio, self.recipe.adapters)
        info = studio.service.info  # read last: the rest of the page shows the service as it is now, too
        return {
            "composer": self,
            "recipe": self.recipe,
            "limits": None if info is None else GenerationLimits.of(info),
            "choices": choices,
            "grid_px": GRID_PX,
            "is_editor": self.is_editor,
            "largest_guidance": LARGEST_GUIDANCE,
            "largest_scale": LARGEST_SCALE,
        }


@router.get("/composer")
async def filled_composer(request: Request, like: str | None = None, generation: str | None = None) -> Response:
    """Return the form with the recipe of a picture, or of a generation that was refused, with what is wrong with it."""
    studio = studio_of(request)
    problems: dict[str, str] = {}
    if generation is None:
        recipe = studio.gallery.recipe(like or "")
        if recipe.edit is not None:
            return redirect(request, editor_url(recipe.edit.image, like=like))
    else:
        refused = studio.generations.get(generation)
        recipe = refused.recipe
        if refused.error is not None:
            view = view_of(request.app.state.pages.language(request), refused.error)
            problems = {message.field: message.message for message in view.fields}
    composer = Composer(recipe=recipe, decided="all", problems=problems)
    return render(request, "generate/composer.html", **await composer.context(studio))


@router.post("/recipe")
async def read_picture(request: Request) -> Response:
    """Return the form with the recipe that a PNG carries. Raises ``RecipeError`` for a file that carries none."""
    studio = studio_of(request)
    async with request.form(max_files=1, max_fields=1) as form:
        file = form.get("picture")
        if not isinstance(file, UploadFile):
            raise FormError("no_picture_sent", "no file", remedy="choose a PNG, JPEG or WebP", field="picture")
        carried = await asyncio.to_thread(recipe_in, file.file, name=file.filename or "")
    composer = Composer(recipe=PictureRecipe.of_file(carried), decided="all")
    context = await composer.context(studio)
    served = {choice.name.partition("@")[0] for choice in await choices_of(studio, ()) or ()}
    missing = [a.name for a in composer.recipe.adapters if a.name.partition("@")[0] not in served]
    is_other = bool(studio.service.model) and studio.service.model["hash"] != carried.model.hash
    return render(
        request, "generate/recipe_read.html", **context,
        carried=carried, is_other_model=is_other, missing=missing,
    )  # fmt: skip


@router.get("/controls")
async def controls(request: Request, settings: str = "{}") -> Response:
    """Return the form without its prompts, with the page's settings and adapters; 204 while the model is unknown."""
    if studio_of(request).service.info is None:
        return Response(status_code=204)
    try:
        recipe = PictureRecipe.model_validate_json(settings)
    except ValidationError as error:
        raise FormError.of(problems_of(error, PictureRecipe)) from error
    recipe = recipe.model_copy(update={"adapters": adapters_in(request)})
    return render(
        request,
        "generate/controls.html",
        **await Composer(recipe=recipe).context(studio_of(request)),
    )


@router.get("/model")
async def model_note(request: Request) -> Response:
    """Return the note about the demo model, with example prompts; empty for other models."""
    return render(request, "generate/model_note.html")


@router.post("/tokens")
async def count_tokens(request: Request) -> Response:
    """Return a prompt's length and whether it is over the limit; 204 while the service does not answer."""
    studio = studio_of(request)
    async with request.form() as form:
        prompt = text_of(form, "prompt")
    try:
        count = await studio.service.count_tokens(prompt)
    except ServiceError:
        return Response(status_code=204)
    say = request.app.state.pages.language(request)
    text = say("generate.tokens" if count.is_exact else "generate.tokens_least", n=count.tokens, most=count.max_tokens)
    return JSONResponse({"text": text, "is_over": count.tokens > count.max_tokens})


@router.get("/adapters")
async def adapter_choices(request: Request, seen: str = "") -> Response:
    """Return the adapters of the form if the form shows others; chosen ones stay chosen."""
    choices = await choices_of(studio_of(request), adapters_in(request))
    if ",".join(choice.name for choice in choices or ()) == seen:
        return Response(status_code=204)
    return render(request, "generate/adapters.html", choices=choices, largest_scale=LARGEST_SCALE)


async def choices_of(studio: StudioContext, chosen: tuple[ScaledAdapter, ...]) -> list[AdapterOption] | None:
    """Return the adapters that are served or chosen; None if the service does not answer and none is chosen."""
    scales = {adapter.name: adapter.scale for adapter in chosen}
    served = await _served(studio)
    if served is None and not chosen:
        return None
    served = served or {}
    names = dict.fromkeys([*scales, *served])
    known = {name: served.get(name.partition("@")[0]) for name in names}
    return [
        AdapterOption(
            name=name,
            trigger_words=() if (status := known[name]) is None else status.trigger_words,
            sampling=None if status is None else status.sampling,
            is_chosen=name in scales,
            scale=scales.get(name, 1.0),
        )
        for name in names
    ]


async def _served(studio: StudioContext) -> dict[str, AdapterStatus] | None:
    """Return the served adapters by name; None if the service has none or does not answer."""
    if studio.service.state is not ConnectionState.READY:
        return None
    try:
        report = await studio.service.adapters()
    except ServiceError:
        return None
    return {adapter.name: adapter for adapter in report.adapters if adapter.version is not None}


def adapters_in(request: Request) -> tuple[ScaledAdapter, ...]:
    """Return the adapters and scales in a URL's query."""
    query = request.query_params
    return tuple(ScaledAdapter(name=n, scale=_scale(query.get(f"scale:{n}", ""))) for n in query.getlist("adapter"))


def _scale(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 1.0
