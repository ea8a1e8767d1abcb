"""The Jobs pages: what waits, runs and is over; one training as it goes; stopping it and going on."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from PIL import Image
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response

from longcat.errors import ConfigError, DataError
from studio.jobs import JobView
from studio.page_error import PageError
from studio.pages import is_fragment, render
from studio.state import studio_of
from trainer.run_record import MetricsLine

router = APIRouter(prefix="/jobs")

_LOG_LINES = 200
_MOST_POINTS = 1500
"""Of a curve that is sent whole: more than a screen has columns."""
_CAUSES = (65, 69, 71, 75, 78, 130, 137, 143)
"""Exit codes that say more than that something went wrong."""
_SCENE_CHUNK = "lithograph-validation"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A prompt of the validation grid."""

    prompt: str
    is_base: bool
    """Whether it has nothing to do with the training, and shows what that broke."""
    pictures: tuple[str | None, ...]
    """Paths below the output, a column each; None where none was drawn."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Validation pictures, prompt by step."""

    steps: tuple[int, ...]
    """Of the columns after the base's."""
    rows: tuple[Row, ...]


@router.get("")
def list_page(request: Request) -> Response:
    """All jobs, the newest first."""
    views = studio_of(request).workshop.jobs.list()
    return render(request, "jobs_table.html" if is_fragment(request) else "jobs.html", views=views)


@router.get("/{identity}")
def job_page(request: Request, identity: str) -> Response:
    """One job."""
    jobs = studio_of(request).workshop.jobs
    view, config = _find(request, identity), jobs.config(identity)
    return render(
        request,
        "job.html",
        view=view,
        cause=_cause(view),
        config=json.dumps(config, ensure_ascii=False, indent=2),
        dataset=config.get("instance_data_dir"),
        grid=_grid(view),
        log=_log(request, identity),
    )


@router.get("/{identity}/figures")
def figures(request: Request, identity: str, state: str) -> Response:
    """How far it is. In another state than the page shows, the whole page is asked for again."""
    view = _find(request, identity)
    if view.state != state:
        return Response(status_code=204, headers={"HX-Refresh": "true"})
    return render(request, "job_figures.html", view=view)


@router.get("/{identity}/log")
def log(request: Request, identity: str) -> Response:
    """The end of what it printed."""
    return render(request, "job_log.html", view=_find(request, identity), log=_log(request, identity))


@router.get("/{identity}/grid")
def grid(request: Request, identity: str, seen: int) -> Response:
    """Validation pictures, if there are more than the page shows."""
    view = _find(request, identity)
    if view.run is None or len(view.run.validations) == seen:
        return Response(status_code=204)
    return render(request, "job_grid.html", view=view, grid=_grid(view))


@router.get("/{identity}/metrics")
def metrics(request: Request, identity: str, after: int = 0) -> Response:
    """The curves beyond a step, as columns; thinned out if there are many, but for the last ones."""
    view = _find(request, identity)
    lines = studio_of(request).workshop.jobs.metrics(identity, after)
    shown = _thinned(lines)
    columns = ("step", "loss", "learning_rate", "step_seconds", "gradient_norm")
    body = {name: [_finite(getattr(line, name)) for line in shown] for name in columns}
    return JSONResponse(
        {
            **body,
            "start_step": view.run.start_step if view.run else 0,
            "last_step": lines[-1].step if lines else view.run.step if view.run else 0,
        }
    )


@router.get("/{identity}/picture/{path:path}")
def picture(request: Request, identity: str, path: str) -> Response:
    """A validation picture."""
    view = _find(request, identity)
    folder = (view.output / "validation").resolve() if view.output else None
    found = (view.output / path).resolve() if view.output else None
    if (
        folder is None
        or found is None
        or not found.is_relative_to(folder)
        or found.suffix != ".png"
        or not found.is_file()
    ):
        raise PageError("error.not_found", status=404)
    return FileResponse(found, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})


@router.post("/{identity}/{action}")
async def act(request: Request, identity: str, action: str) -> Response:
    """Stop, kill, resume or delete it."""
    jobs = studio_of(request).workshop.jobs
    _find(request, identity)
    try:
        match action:
            case "stop":
                await run_in_threadpool(jobs.stop, identity)
            case "kill":
                await run_in_threadpool(lambda: jobs.stop(identity, at_once=True))
            case "resume":
                await run_in_threadpool(jobs.resume, identity)
            case "delete":
                await run_in_threadpool(jobs.delete, identity)
            case _:
                raise PageError("error.not_found", status=404)
    except ConfigError as error:  # it has come to another state since the page was shown
        raise PageError("jobs.not_now", status=409, detail=str(error)) from error
    path = "/jobs" if action == "delete" else f"/jobs/{identity}"
    if is_fragment(request):
        return Response(status_code=204, headers={"HX-Redirect": path})
    return RedirectResponse(path, status_code=303)


def _find(request: Request, identity: str) -> JobView:
    try:
        return studio_of(request).workshop.jobs.get(identity)
    except DataError as error:
        raise PageError("jobs.none", status=404, detail=str(error)) from error


def _cause(view: JobView) -> str:
    """What its end is told and remedied by: an exit code that means something, ``none`` if nobody noted one."""
    if view.exit_code is None:
        return "refused" if view.job.refused else "none"
    code = 128 - view.exit_code if view.exit_code < 0 else view.exit_code
    return str(code) if code in _CAUSES else "1"


def _log(request: Request, identity: str) -> str:
    return studio_of(request).workshop.jobs.log_tail(identity, _LOG_LINES)


def _grid(view: JobView) -> Grid | None:
    """What was drawn so far; None before the first."""
    if view.output is None or view.run is None or not view.run.validations:
        return None
    validations = view.run.validations
    by_name = [{Path(path).name: path for path in validation.images} for validation in validations]
    names = list(dict.fromkeys(name for drawn in by_name for name in drawn))
    rows = []
    for name in names:
        base = f"validation/base/{name}"
        drawn = (base if (view.output / base).exists() else None, *(paths.get(name) for paths in by_name))
        scene = _scene(view.output, drawn)
        rows.append(Row(prompt=scene.get("prompt", name), is_base=bool(scene.get("is_base")), pictures=drawn))
    return Grid(steps=tuple(validation.step for validation in validations), rows=tuple(rows))


def _scene(output: Path, drawn: Sequence[str | None]) -> dict[str, Any]:
    """What a picture says of itself."""
    for path in filter(None, drawn):
        try:
            with Image.open(output / path) as image:
                image.load()
                scene: dict[str, Any] = json.loads(image.info.get(_SCENE_CHUNK, "{}"))
                return scene
        except (OSError, ValueError):  # gone, or not ours: the grid shows its name
            continue
    return {}


def _thinned(lines: Sequence[MetricsLine]) -> Sequence[MetricsLine]:
    every = -(-len(lines) // _MOST_POINTS)
    return lines if every <= 1 else [*lines[:-1:every], lines[-1]]


def _finite(value: float) -> float | None:
    """JSON has no NaN; a chart has gaps."""
    return value if abs(value) < float("inf") else None
