"""Grids: the fields of the form, a grid and its progress, its sheet."""

import asyncio

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from longcat.errors import LithographError
from studio.context import studio_of
from studio.generate.form import read_recipe
from studio.generate.grid.form import BASE, prompts_in, read_plan
from studio.generate.grid.plan import PlanColumn, PlanRow
from studio.generate.grid.sheet import draw_sheet
from studio.generate.limits import GenerationLimits
from studio.web.error_pages import view_of
from studio.web.pages import is_fragment, redirect, render

router = APIRouter()

_MOST_LISTED = 100


@router.get("/generate/grid")
async def grid_fields(request: Request) -> Response:
    """Send the grid's fields of the form, with every version of every adapter."""
    catalogue = studio_of(request).catalogue
    problem = None
    try:
        entries = await asyncio.to_thread(catalogue.all)
    except LithographError as error:
        entries, problem = [], error.problems[0]
    versions = [manifest.reference for entry in entries for manifest in entry.versions]
    return render(request, "generate/grid_fields.html", versions=versions, base=BASE, problem=problem)


@router.post("/grids")
async def start_grid(request: Request) -> Response:
    """Start the grid that the form describes, and show it."""
    studio = studio_of(request)
    async with request.form() as form:
        first = next(iter(prompts_in(form)), "")
        plan = read_plan(form, read_recipe(form, GenerationLimits.of(studio.service.info), prompt=first))
    grid = studio.grids.start(plan)
    return redirect(request, f"/grids/{grid.id}")


@router.get("/grids")
async def list_page(request: Request) -> Response:
    """Show the newest grids."""
    grids = await asyncio.to_thread(studio_of(request).grids.list, count=_MOST_LISTED)
    return render(request, "generate/grids.html", grids=grids)


@router.get("/grids/{identity}")
async def grid_page(request: Request, identity: str, seen: str = "") -> Response:
    """Show a grid. A page that polls receives the table alone, and 204 while it has not changed."""
    grids = studio_of(request).grids
    grid, is_drawing = grids.get(identity), grids.is_drawing(identity)
    state = f"{len(grid.cells)}-{is_drawing}"
    if is_fragment(request) and seen == state:
        return Response(status_code=204)
    error = grids.errors.get(identity)
    return render(
        request,
        "generate/grid_table.html" if is_fragment(request) else "generate/grid.html",
        grid=grid,
        state=state,
        is_drawing=is_drawing,
        pictures=await asyncio.to_thread(grids.pictures, grid),
        error=view_of(request.app.state.pages.language(request), error) if error is not None else None,
    )


@router.post("/grids/{identity}/resume")
async def resume_grid(request: Request, identity: str) -> Response:
    """Generate the missing cells."""
    studio_of(request).grids.resume(identity)
    return redirect(request, f"/grids/{identity}")


@router.post("/grids/{identity}/cancel")
async def cancel_grid(request: Request, identity: str) -> Response:
    """Cancel the generation."""
    grids = studio_of(request).grids
    grids.get(identity)
    grids.cancel(identity)
    return redirect(request, f"/grids/{identity}")


@router.get("/grids/{identity}/sheet.png")
async def grid_sheet(request: Request, identity: str) -> Response:
    """Send the grid as one labelled PNG."""
    studio = studio_of(request)
    grid = studio.grids.get(identity)
    say = request.app.state.pages.language(request)

    def label(column: PlanColumn) -> str:
        return f"{column.adapter} · {column.scale:g}" if column.adapter else str(say("generate.base_model"))

    def seed(row: PlanRow) -> str:
        return f"{say('field.seed')} {row.seed}"

    def sheet() -> bytes:
        pictures = studio.grids.pictures(grid)
        files = {cell: studio.gallery.file(picture.id, "picture.png") for cell, picture in pictures.items()}
        models = dict.fromkeys(picture.flavour for picture in pictures.values())
        common = (f"{adapter.name} {adapter.scale:g}" for adapter in grid.plan.recipe.adapters)
        title = " · ".join(("Lithograph", *models, *common, f"{grid.created:%Y-%m-%d %H:%M} UTC"))
        return draw_sheet(grid.plan, files, title=title, label=label, seed=seed)

    headers = {"Content-Disposition": f'attachment; filename="grid-{grid.id}.png"'}
    return Response(await asyncio.to_thread(sheet), media_type="image/png", headers=headers)
