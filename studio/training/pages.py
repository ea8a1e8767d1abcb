"""The Train page: a form of the training's configuration with the memory plan, import, export and start."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import Response

from longcat.errors import ConfigError, HubError, UserError
from longcat.problem import Problem
from studio.context import TrainingServices, studio_of
from studio.datasets.cards import card_of
from studio.training.boundary import Boundary
from studio.training.forecast_view import decided_settings, figures
from studio.training.form import (
    GROUPS,
    IN_ANOTHER_FILE,
    SUGGESTIONS,
    Reading,
    as_file,
    as_typed,
    field_of,
    fields,
    read_file,
    read_form,
)
from studio.training.goals import GOALS, MODELS, Goal, goal_options, starting_options
from studio.training.option_names import option_names
from studio.web.errors import ConfigFileError, PageNotFoundError
from studio.web.forms import text_of
from studio.web.language import Language
from studio.web.pages import is_fragment, redirect, render

router = APIRouter(prefix="/train")

_GPUS: Mapping[int, str] = {12: "RTX 4070", 16: "RTX 4080", 24: "RTX 4090", 48: "L40S", 80: "H100"}
"""GPUs to plan for, by GiB, each with an example."""
_MOST_FILE_BYTES = 2**20


@router.get("")
def form_page(request: Request, flavour: str = "", goal: str = "", dataset: str = "", job: str = "") -> Response:
    """Show the form: with the values of a flavour and a goal, for a dataset, or with an earlier job's values."""
    training = studio_of(request).training
    aim: Goal = next((known for known in GOALS if known == goal), "style")
    if job:
        options = dict(read_file(as_file(training.jobs.config(job))).options)
    else:
        options = starting_options(flavour if flavour in MODELS else _served(request), aim)
    if dataset:
        found = training.datasets.open(dataset)
        options |= {"instance_data_dir": str(found.folder), "adapter_name": _adapter_name(found.name)}
    return _page(
        request, read_form(as_typed(options)), decided=bool(flavour or goal or dataset or job), goal="" if job else aim
    )


@router.post("/check")
async def check(request: Request) -> Response:
    """Return the form's problems and the memory that the training would take."""
    training = studio_of(request).training
    async with request.form() as form:
        reading = _read(form)
        if text_of(form, "submitted"):  # a start failed: keep showing the fields that a start requires
            reading = _ready(reading)
        # The boundary applies before a model's files are read for the plan.
        reading = await run_in_threadpool(_within, training.boundary, reading, text_of(form, "executor") or "local")
        return await run_in_threadpool(_checked, request, form, reading, 200)


@router.post("")
async def start(request: Request) -> Response:
    """Queue the training."""
    async with request.form() as form:
        return await _start(request, form)


async def _start(request: Request, form: FormData) -> Response:
    training = studio_of(request).training
    executor = text_of(form, "executor") or "local"
    if executor not in training.jobs.executor_names:
        raise PageNotFoundError
    reading = await run_in_threadpool(_startable, training, _ready(_read(form)), executor)
    if (config := reading.config) is None:
        return await run_in_threadpool(_refused, request, form, reading)
    name = config.adapter_name or "training"
    try:
        job = await run_in_threadpool(training.jobs.submit, config, name=name, executor=executor)
    except UserError as error:  # paths or settings that a pod cannot have
        return await run_in_threadpool(_refused, request, form, reading.with_problems(error.problems))
    return redirect(request, f"/jobs/{job.id}")


def _within(boundary: Boundary, reading: Reading, executor: str) -> Reading:
    """Return the reading, with the problems of options outside the boundary."""
    forbidden = () if reading.config is None else boundary.problems(reading.config, here=executor == "local")
    return reading.with_problems(forbidden) if forbidden else reading


def _startable(training: TrainingServices, reading: Reading, executor: str) -> Reading:
    """Return the reading, with the problems of options outside the boundary, or of unusable data."""
    reading = _within(training.boundary, reading, executor)
    if (config := reading.config) is None or executor != "local":
        return reading
    where = "data_backend_config" if config.data_backend_config else "instance_data_dir"
    unusable = [problem.within(field=where) for problem in training.scans.problems(config)]
    return reading.with_problems(unusable) if unusable else reading


@router.post("/export")
async def export(request: Request) -> Response:
    """Send the form as a ``config.json``, valid or not."""
    async with request.form() as form:
        reading = _read(form)
    headers = {"Content-Disposition": 'attachment; filename="config.json"'}
    return Response(as_file(reading.options), media_type="application/json", headers=headers)


@router.post("/import")
async def import_file(request: Request) -> Response:
    """Show the form with the values of an uploaded ``config.json``, ours or SimpleTuner's."""
    async with request.form(max_files=1, max_fields=1) as form:
        file = form.get("file")
        content = await file.read(_MOST_FILE_BYTES + 1) if isinstance(file, UploadFile) else b""
    try:
        if len(content) > _MOST_FILE_BYTES:
            raise ConfigError(
                "imported_file_too_large", "the file has more than {size} bytes", size=f"{_MOST_FILE_BYTES:,}"
            )
        reading = read_file(content.decode("utf-8"))
    except ConfigError as error:
        raise ConfigFileError.of(error.problems) from error
    except UnicodeDecodeError as error:
        raise ConfigFileError(
            "imported_file_not_text", "the file is not UTF-8 text", remedy="save it as UTF-8"
        ) from error
    return _page(request, reading, imported=True)


def _page(
    request: Request,
    reading: Reading,
    *,
    decided: bool = True,
    imported: bool = False,
    submitted: bool = False,
    goal: str = "",
    status: int = 200,
) -> Response:
    """Show the form; ``decided``: the values that the browser has stored must not replace these."""
    training = studio_of(request).training
    language: Language = request.app.state.pages.language(request)
    return render(
        request,
        "train.html",
        status=status,
        groups={group: [fields()[name] for name in names] for group, names in GROUPS.items()},
        values=as_typed(reading.options),
        suggestions={**SUGGESTIONS, "instance_data_dir": [str(d.folder) for d in training.datasets.list()]},
        reading=reading,
        mistakes=_by_field(language, reading.problems),
        names=option_names(language.code),
        executors=training.jobs.executor_names,
        gpus=_GPUS,
        cards=[card_of(dataset) for dataset in training.datasets.list()],
        adapter_name=_adapter_name,
        url=_url,
        goal=goal,
        goals=GOALS,
        goal_values={flavour: {goal: _typed(goal_options(flavour, goal)) for goal in GOALS} for flavour in MODELS},
        starting_values=_starting_values(),
        decided=decided,
        imported=imported,
        submitted=submitted,
        changed=frozenset(reading.options),
        left_out=[p for p in reading.problems if field_of(p) not in fields() or p.code in IN_ANOTHER_FILE],
    )


def _refused(request: Request, form: FormData, reading: Reading) -> Response:
    if is_fragment(request):
        return _checked(request, form, reading, 422)
    return _page(request, reading, submitted=True, status=422)


def _checked(request: Request, form: FormData, reading: Reading, status: int) -> Response:
    """Send the memory plan and, out of band, the problem of each field."""
    language: Language = request.app.state.pages.language(request)
    forecast, problems = None, tuple[Problem, ...]()
    if reading.config is not None:
        gib = text_of(form, "plan_for")
        try:
            devices = studio_of(request).training.devices
            forecast = devices.plan(reading.config, gpu_gib=int(gib) if gib in map(str, _GPUS) else None)
        except (UserError, HubError) as error:
            problems = error.problems
    return render(
        request,
        "train_checked.html",
        status=status,
        forecast=forecast,
        problems=problems,
        mistakes=_by_field(language, reading.problems),
        fields=fields(),
        **(figures(forecast) if forecast else {}),
        decided=decided_settings(reading.config, forecast) if reading.config and forecast else None,
    )


def _ready(reading: Reading) -> Reading:
    """Return the reading, with the problems of a training without data or a name to publish under."""
    if reading.config is None:
        return reading
    missing = []
    if not reading.config.datasets:
        missing.append(
            Problem(
                code="pictures_not_chosen", template="no pictures",
                remedy_template="choose a dataset, or give s3://bucket/prefix", field="instance_data_dir",
            )
        )  # fmt: skip
    if reading.config.adapter_name is None:
        missing.append(
            Problem(
                code="adapter_not_named", template="no name",
                remedy_template="give lower-case letters, digits, - and _", field="adapter_name",
            )
        )  # fmt: skip
    return reading.with_problems(missing) if missing else reading


def _served(request: Request) -> str:
    """Return the flavour that the service generates with, if it can be trained on; else the embedded one."""
    info = studio_of(request).service.info
    flavour = "" if info is None else info["model"]["flavour"]
    return flavour if flavour in MODELS else "embedded"


def _starting_values() -> Mapping[str, Mapping[str, str]]:
    """Return by flavour the values of all options that suit some flavour, so that one takes back what another has set."""
    starts = {flavour: starting_options(flavour) for flavour in MODELS}
    names = {name for options in starts.values() for name in options}
    return {flavour: {name: as_typed(options)[name] for name in sorted(names)} for flavour, options in starts.items()}


def _typed(options: Mapping[str, Any]) -> Mapping[str, str]:
    values = as_typed(options)
    return {name: values[name] for name in options}


def _url(route: str, /, **query: Any) -> str:
    return f"{route}?{urlencode(query)}"


def _read(form: FormData) -> Reading:
    return read_form({name: value for name, value in form.items() if isinstance(value, str)})


def _by_field(language: Language, problems: tuple[Problem, ...]) -> dict[str, str]:
    """Return the problems by field, in the reader's language."""
    texts: dict[str, list[str]] = {}
    for problem in problems:
        name = field_of(problem)
        text = language.explain(problem)
        texts.setdefault(name, []).append(text if name else language("train.option", name=problem.field, problem=text))
    return {name: language("train.stop").join(clauses) for name, clauses in texts.items()}


def _adapter_name(name: str) -> str:
    """Return an adapter name made from a dataset's: letters, digits and ``-``."""
    plain = "".join(char if char.isascii() and char.isalnum() else "-" for char in name.lower()).strip("-")
    return "-".join(part for part in plain.split("-") if part)[:40] or "my-style"
