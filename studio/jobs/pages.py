"""The Jobs pages: the list of trainings, the progress of one, and its actions."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from longcat.errors import DataError
from studio.context import studio_of
from studio.jobs.grid import grid_of
from studio.jobs.job_view import JobView
from studio.jobs.log_words import log_entries
from studio.jobs.record import State
from studio.jobs.report import report_view
from studio.web.errors import PageNotFoundError
from studio.web.forms import read_form, text_of
from studio.web.pages import is_fragment, redirect, render
from studio.web.samples import ShownSample, render_sample
from trainer.record.outcome import INTERRUPTED, KILLED, TERMINATED, Outcome
from trainer.record.prompts_file import ChangedPrompts
from trainer.record.run_file import MetricsLine

router = APIRouter(prefix="/jobs")

_LOG_LINES = 200
_MOST_COMPARED = 8
"""Curves whose colours can be distinguished."""
_ENDED_BADLY = (State.FAILED, State.KILLED)
_MOST_POINTS = 1500
"""Points of a curve that is sent whole: more than a screen has columns."""
_CAUSES = (*(code for code in Outcome if code > Outcome.UNKNOWN), INTERRUPTED, KILLED, TERMINATED)
"""Exit codes with a text of their own."""


@dataclass(frozen=True, kw_only=True)
class ListRow:
    """A job in the list."""

    view: JobView
    place: int | None
    """Place in the queue, from 1; None for one that does not wait."""
    cause: str | None = None
    """Key of the texts on its end, if it ended badly."""
    repair: Literal["dataset", "configuration"] | None = None
    """The part to be changed before the job can be resumed."""
    dataset: str | None = None
    """Its folder of pictures, where the dataset has to be changed."""


@router.get("")
def list_page(request: Request) -> Response:
    """All jobs, the newest first; those that wait, in their order, above the rest."""
    return _list(request, "jobs_table.html" if is_fragment(request) else "jobs.html")


@router.get("/compare")
def compare_page(request: Request) -> Response:
    """Curves of several jobs, one over the other."""
    jobs = studio_of(request).training.jobs
    views = [jobs.get(identity) for identity in dict.fromkeys(request.query_params.getlist("job"))][:_MOST_COMPARED]
    return render(request, "jobs_compare.html", views=views)


@router.get("/{identity}")
def job_page(request: Request, identity: str) -> Response:
    """Show one job."""
    jobs = studio_of(request).training.jobs
    view, config = _find(request, identity), jobs.config(identity)
    return render(
        request,
        "job.html",
        view=view,
        cause=_cause(view),
        repair=_repair(view, config),
        config=json.dumps(config, ensure_ascii=False, indent=2),
        dataset=config.get("instance_data_dir"),
        grid=grid_of(view),
        report=report_view(view.run),
        prompts=_prompts(request, view, config),
        **_machine(request, view),
        **_log(request, identity),
    )


@router.get("/{identity}/figures")
def figures(request: Request, identity: str, state: str) -> Response:
    """Show a job's progress. When its state has changed, the browser reloads the whole page."""
    view = _find(request, identity)
    if view.state != state:
        return Response(status_code=204, headers={"HX-Refresh": "true"})
    return render(request, "job_figures.html", view=view, **_machine(request, view))


@router.get("/{identity}/log")
def log(request: Request, identity: str) -> Response:
    """Send the end of the log."""
    return render(request, "job_log.html", view=_find(request, identity), **_log(request, identity))


@router.get("/{identity}/grid")
def grid(request: Request, identity: str, seen: int) -> Response:
    """Send the grid of validation pictures, if there are more than the page shows."""
    view = _find(request, identity)
    if view.run is None or len(view.run.validations) == seen:
        return Response(status_code=204)
    return render(request, "job_grid.html", view=view, grid=grid_of(view))


@router.get("/{identity}/report")
def report(request: Request, identity: str, seen: str) -> Response:
    """Send the report card, if it has changed since the page showed it."""
    view = _find(request, identity)
    shown = report_view(view.run)
    if shown is None or shown.seen == seen:
        return Response(status_code=204)
    return render(request, "job_report.html", view=view, report=shown)


@router.get("/{identity}/metrics")
def metrics(request: Request, identity: str, after: int = 0) -> Response:
    """Send the curves after a step as columns; many points are thinned out, except the last ones."""
    view = _find(request, identity)
    lines = studio_of(request).training.jobs.metrics(identity, after)
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
    """Send a validation picture."""
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
        raise PageNotFoundError
    return FileResponse(found, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})


@router.get("/{identity}/sample/{path:path}")
def sample(request: Request, identity: str, path: str, below: str | None = None) -> Response:
    """Show a validation picture in the viewer, over the base's or another checkpoint's of the same prompt."""
    shown = grid_of(_find(request, identity))
    row = next((row for row in shown.rows if path in row.pictures), None) if shown is not None else None
    if shown is None or row is None:
        raise PageNotFoundError
    say = request.app.state.pages.language(request)
    labels = [say("jobs.base"), *(say("jobs.at_step", step=step) for step in shown.steps)]
    samples = {
        picture: ShownSample(
            key=picture, url=f"/jobs/{identity}/sample/{picture}", src=f"/jobs/{identity}/picture/{picture}",
            prompt=row.prompt, label=label,
        )
        for label, picture in zip(labels, row.pictures, strict=True)
        if picture is not None
    }  # fmt: skip
    others = [other for key, other in samples.items() if key != path]
    return render_sample(request, samples[path], others, below=below)


@router.post("/{identity}/prompts")
async def change_prompts(request: Request, identity: str) -> Response:
    """Have the next validations sample other prompts."""
    async with request.form() as form:
        lines = [line.strip() for line in text_of(form, "prompts").splitlines() if line.strip()]
        prompts = read_form(ChangedPrompts, form, prompts=lines)
    jobs = studio_of(request).training.jobs
    await run_in_threadpool(jobs.change_prompts, identity, prompts)
    return render(request, "job_prompts_saved.html", count=len(prompts.prompts))


@router.post("/{identity}/{action}")
async def act(request: Request, identity: str, action: str) -> Response:
    """Stop, kill, resume or delete it, or move it in the queue."""
    jobs = studio_of(request).training.jobs
    _find(request, identity)
    match action:
        case "stop":
            await run_in_threadpool(jobs.stop, identity)
        case "kill":
            await run_in_threadpool(lambda: jobs.stop(identity, at_once=True))
        case "resume":
            await run_in_threadpool(jobs.resume, identity)
        case "delete":
            await run_in_threadpool(jobs.delete, identity)
        case "earlier" | "later":
            await run_in_threadpool(jobs.move, identity, places=-1 if action == "earlier" else 1)
        case _:
            raise PageNotFoundError
    if request.headers.get("hx-target") == "jobs-table":
        return await run_in_threadpool(_list, request, "jobs_table.html")
    return redirect(request, "/jobs" if action in ("delete", "earlier", "later") else f"/jobs/{identity}")


def _list(request: Request, template: str) -> Response:
    jobs = studio_of(request).training.jobs
    queue = {view.job.id: place for place, view in enumerate(jobs.waiting(), 1)}
    views = sorted(jobs.list(), key=lambda view: queue.get(view.job.id, len(queue) + 1))
    rows = [_row(request, view, queue.get(view.job.id)) for view in views]
    return render(request, template, rows=rows, last_place=len(queue))


def _row(request: Request, view: JobView, place: int | None) -> ListRow:
    if view.state not in _ENDED_BADLY:
        return ListRow(view=view, place=place)
    try:
        config = studio_of(request).training.jobs.config(view.job.id)
    except (OSError, ValueError):  # the record has the reason
        config = {}
    return ListRow(
        view=view,
        place=place,
        cause=_cause(view),
        repair=_repair(view, config),
        dataset=config.get("instance_data_dir"),
    )


def _machine(request: Request, view: JobView) -> dict[str, Any]:
    """Return the gauges of this machine for a job that runs on it."""
    runs_here = view.job.executor == "local" and view.state in (State.RUNNING, State.STOPPING)
    return {"gauges": studio_of(request).training.gauges.read() if runs_here else None}


def _prompts(request: Request, view: JobView, config: Mapping[str, Any]) -> str | None:
    """Return the prompts that can be changed, a line each; None where the trainer would not read them."""
    if view.output is None or view.state.is_over or config.get("validation_disable"):
        return None
    try:
        return "\n".join(studio_of(request).training.jobs.prompts(view.job.id))
    except DataError:  # the trainer warns of it; here they are written anew
        return ""


def _find(request: Request, identity: str) -> JobView:
    return studio_of(request).training.jobs.get(identity)


def _cause(view: JobView) -> str:
    """Return the key of the text on a job's end: a known exit code, or ``none`` if no code was recorded."""
    if view.exit_code is None:
        return "refused" if view.job.refused else "none"
    code = 128 - view.exit_code if view.exit_code < 0 else view.exit_code
    return str(int(code if code in _CAUSES else Outcome.UNKNOWN))


def _repair(view: JobView, config: Mapping[str, Any]) -> Literal["dataset", "configuration"] | None:
    """Return the change that the job needs before it is resumed; None if it needs none."""
    if view.state is not State.FAILED:
        return None
    if view.exit_code == Outcome.BAD_DATA and config.get("instance_data_dir"):
        return "dataset"
    needs_other_options = (Outcome.BAD_DATA, Outcome.OUT_OF_MEMORY, Outcome.BAD_CONFIG)
    return "configuration" if view.exit_code in needs_other_options or _cause(view) == "refused" else None


def _log(request: Request, identity: str) -> dict[str, Any]:
    text = studio_of(request).training.jobs.log_tail(identity, _LOG_LINES)
    return {"log": text, "entries": log_entries(text)}


def _thinned(lines: Sequence[MetricsLine]) -> Sequence[MetricsLine]:
    every = -(-len(lines) // _MOST_POINTS)
    return lines if every <= 1 else [*lines[:-1:every], lines[-1]]


def _finite(value: float) -> float | None:
    """Return None for NaN and infinity, which JSON lacks; the chart shows a gap."""
    return value if abs(value) < float("inf") else None
