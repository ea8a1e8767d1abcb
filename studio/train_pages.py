"""The Train page: a form of the training's configuration, the memory plan beside it, files in and out, and off it goes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from longcat.errors import ConfigError, DataError, HubError, LithographError, UserError
from studio.forms import text_of
from studio.language import Language
from studio.option_names import option_names
from studio.page_error import PageError
from studio.pages import is_fragment, render
from studio.state import studio_of
from studio.train_form import GROUPS, SUGGESTIONS, Mistake, Reading, as_file, as_typed, fields, read_file, read_form
from studio.workshop import Workshop
from trainer.config import TrainConfig
from trainer.planning import Forecast

router = APIRouter(prefix="/train")

_START: Mapping[str, Mapping[str, Any]] = {
    "embedded": {
        "model_flavour": "embedded", "resolution": 128, "train_batch_size": 4, "max_train_steps": 400,
        "learning_rate": 2e-3, "lr_scheduler": "cosine", "lr_warmup_steps": 20, "lora_targets": "all-linear",
        "lora_dropout": 0, "validation_steps": 100, "checkpointing_steps": 100, "validation_max_drift": 0.5,
    },
    "final": {
        "model_flavour": "final", "base_model_precision": "int8-quanto", "text_encoder_1_precision": "int8-quanto",
        "gradient_checkpointing": True, "max_train_steps": 2000, "lr_warmup_steps": 50, "validation_steps": 250,
        "checkpointing_steps": 250,
    },
}  # fmt: skip
"""Where a form starts, by flavour: what suits it. ``dev`` starts as ``final`` does."""
_MISTAKES: Mapping[str, str] = {
    "greater_than_equal": "mistake.at_least",
    "greater_than": "mistake.more_than",
    "less_than_equal": "mistake.at_most",
    "less_than": "mistake.less_than",
    "int_parsing": "mistake.whole",
    "int_type": "mistake.whole",
    "int_from_float": "mistake.whole",
    "float_parsing": "mistake.number",
    "float_type": "mistake.number",
    "literal_error": "mistake.choice",
    "no_data": "mistake.no_data",
    "no_name": "mistake.no_name",
}
"""How the usual mistakes are told, by pydantic's names and ours."""
_GPU_GIB = (12, 16, 24, 48, 80)
_MOST_FILE_BYTES = 2**20


@router.get("")
def form_page(request: Request, flavour: str = "", dataset: str = "", job: str = "") -> Response:
    """The form: as a flavour suits, for a dataset, or as an earlier job had it."""
    workshop = studio_of(request).workshop
    if job:
        reading = read_file(as_file(workshop.jobs.config(job)))
        said = dict(reading.said)
    else:
        start = flavour if flavour in (*_START, "dev") else "embedded"
        said = dict(_START["final" if start == "dev" else start]) | {"model_flavour": start}
    if dataset:
        found = workshop.datasets.open(dataset)
        said |= {"instance_data_dir": str(found.folder), "adapter_name": _adapter_name(found.name)}
    return _page(request, read_form(as_typed(said)))


@router.post("/check")
async def check(request: Request) -> Response:
    """What is wrong with the form as it is, and how much memory it would take."""
    form = await request.form()
    reading = _read(form)
    if text_of(form, "wanted"):  # it was to be started: what that lacks is still said
        reading = _ready(reading)
    return await run_in_threadpool(_checked, request, form, reading, 200)


@router.post("")
async def start(request: Request) -> Response:
    """Queue the training."""
    workshop, form = studio_of(request).workshop, await request.form()
    reading = _ready(_read(form))
    if (config := reading.config) is None:
        return await run_in_threadpool(_refused, request, form, reading)
    place = text_of(form, "place") or "local"
    if place not in workshop.jobs.place_names:
        raise PageError("error.not_found", status=404)
    if place == "local" and (forbidden := _forbidden(workshop, config)):
        reading = Reading(said=reading.said, config=None, mistakes=forbidden)
        return await run_in_threadpool(_refused, request, form, reading)
    name = config.adapter_name or "training"
    try:
        job = await run_in_threadpool(workshop.jobs.submit, config, name=name, place=place)
    except UserError as error:  # what a cluster's pod has not
        where = str(error).partition(":")[0].partition(" ")[0]
        mistake = Mistake(name=where if where in fields() else "", message=str(error))
        reading = Reading(said=reading.said, config=None, mistakes=(mistake,))
        return await run_in_threadpool(_refused, request, form, reading)
    path = f"/jobs/{job.id}"
    if is_fragment(request):
        return Response(status_code=204, headers={"HX-Redirect": path})
    return RedirectResponse(path, status_code=303)


@router.post("/export")
async def export(request: Request) -> Response:
    """The form as a ``config.json``, right or wrong."""
    reading = _read(await request.form())
    headers = {"Content-Disposition": 'attachment; filename="config.json"'}
    return Response(as_file(reading.said), media_type="application/json", headers=headers)


@router.post("/import")
async def import_file(request: Request) -> Response:
    """The form as a ``config.json`` has it, SimpleTuner's too."""
    async with request.form(max_files=1, max_fields=1) as form:
        file = form.get("file")
        content = await file.read(_MOST_FILE_BYTES + 1) if isinstance(file, UploadFile) else b""
    try:
        if len(content) > _MOST_FILE_BYTES:
            raise ConfigError(f"the file has more than {_MOST_FILE_BYTES:,} bytes, which no config.json needs")
        reading = read_file(content.decode("utf-8"))
    except (ConfigError, UnicodeDecodeError) as error:
        raise PageError("train.not_a_config", detail=str(error)) from error
    return _page(request, reading, imported=True)


def _page(
    request: Request, reading: Reading, *, imported: bool = False, wanted: bool = False, status: int = 200
) -> Response:
    workshop = studio_of(request).workshop
    language: Language = request.app.state.pages.language(request)
    return render(
        request,
        "train.html",
        status=status,
        groups={group: [fields()[name] for name in names] for group, names in GROUPS.items()},
        values=as_typed(reading.said),
        suggestions={**SUGGESTIONS, "instance_data_dir": [str(d.folder) for d in workshop.datasets.list()]},
        reading=reading,
        mistakes=_by_field(language, reading.mistakes),
        names=option_names(language.code),
        places=workshop.jobs.place_names,
        gpus=_GPU_GIB,
        imported=imported,
        wanted=wanted,
        changed=frozenset(reading.said),
    )


def _refused(request: Request, form: FormData, reading: Reading) -> Response:
    if is_fragment(request):
        return _checked(request, form, reading, 422)
    return _page(request, reading, wanted=True, status=422)


def _checked(request: Request, form: FormData, reading: Reading, status: int) -> Response:
    """The plan, and out of band what is wrong beside each field."""
    language: Language = request.app.state.pages.language(request)
    forecast, problem = None, ""
    if reading.config is not None:
        gib = text_of(form, "plan_for")
        try:
            forecast = _plan(studio_of(request).workshop, reading.config, int(gib) if gib.isdecimal() else None)
        except (UserError, HubError) as error:
            problem = str(error)
    return render(
        request,
        "train_checked.html",
        status=status,
        forecast=forecast,
        problem=problem,
        mistakes=_by_field(language, reading.mistakes),
        fields=fields(),
        **(_figures(forecast) if forecast else {}),
    )


def _figures(forecast: Forecast) -> dict[str, Any]:
    """A plan as the page shows it; keys are of the catalogue."""
    plan = forecast.plan
    parts = {
        "base": plan.base_bytes, "adapter": plan.adapter_bytes, "gradients": plan.gradient_bytes,
        "optimizer": plan.optimizer_bytes, "ema": plan.ema_bytes, "activations": plan.activation_bytes,
        "workspace": plan.workspace_bytes, "text_encoder": plan.text_encoder_bytes, "encoding": plan.vae_encode_bytes,
        "decoding": plan.vae_decode_bytes if plan.workload.validation else 0,
    }  # fmt: skip
    return {
        "usable": forecast.usable_bytes,
        "fits": forecast.fits(plan),
        "phases": [(phase.replace(" ", "_"), size) for phase, size in plan.peak_bytes.items()],
        "parts": [(name, size) for name, size in parts.items() if size],
        "others": [
            {
                "precision": str(other.workload.precision),
                "every": other.workload.checkpointing or 0,
                "most_bytes": other.most_bytes,
                "fits": forecast.fits(other),
            }
            for other in forecast.others
        ],
    }


def _plan(workshop: Workshop, config: TrainConfig, gpu_gib: int | None) -> Forecast:
    try:
        return workshop.machine.plan(config, gpu_gib=gpu_gib)
    except LithographError:
        raise
    except ValueError as error:  # sizes that only the data can make sense of
        raise ConfigError(str(error)) from error


def _ready(reading: Reading) -> Reading:
    """What a training needs beyond a configuration that is right: data, and a name to publish by."""
    if reading.config is None:
        return reading
    missing = []
    if not reading.config.datasets:
        missing.append(Mistake(name="instance_data_dir", kind="no_data", message="say where the pictures are"))
    if reading.config.adapter_name is None:
        missing.append(Mistake(name="adapter_name", kind="no_name", message="say what the adapter is to be called"))
    if missing:
        return Reading(said=reading.said, config=None, mistakes=tuple(missing))
    return reading


def _forbidden(workshop: Workshop, config: TrainConfig) -> tuple[Mistake, ...]:
    """Files of this machine that whoever uses the studio has no business with."""
    where = "instance_data_dir" if config.instance_data_dir else "data_backend_config"
    paths = [(where, str(data.instance_data_dir)) for data in config.datasets if data.type == "local"]
    paths += [(name, str(path)) for name in ("init_lora", "user_prompt_library") if (path := getattr(config, name))]
    mistakes = []
    for name, path in paths:
        try:
            workshop.datasets.allowed(Path(path).expanduser())
        except DataError as error:
            mistakes.append(Mistake(name=name, message=str(error)))
    return tuple(mistakes)


def _read(form: FormData) -> Reading:
    return read_form({name: value for name, value in form.items() if isinstance(value, str)})


def _by_field(language: Language, mistakes: tuple[Mistake, ...]) -> dict[str, str]:
    """What is wrong by field, in the reader's language where it is one of the usual mistakes."""
    said: dict[str, list[str]] = {}
    for mistake in mistakes:
        key = _MISTAKES.get(mistake.kind)
        other = language.retell(mistake.message) or mistake.message
        text = language(key, **mistake.values) if key else language("mistake.other", detail=other)
        said.setdefault(mistake.name, []).append(text)
    return {name: " ".join(texts) for name, texts in said.items()}


def _adapter_name(name: str) -> str:
    """A name for an adapter from a dataset's: letters, digits, ``-`` and ``_``."""
    plain = "".join(char if char.isascii() and char.isalnum() else "-" for char in name.lower()).strip("-")
    return "-".join(part for part in plain.split("-") if part)[:40] or "my-style"
