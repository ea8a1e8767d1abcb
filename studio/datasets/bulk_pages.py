"""Changes of many captions at once, by a person or a model, and undoing them."""

from typing import Annotated, Literal
from urllib.parse import urlencode

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import Response

from studio.context import TrainingServices, studio_of
from studio.datasets.bulk import Action, CaptionEdit
from studio.datasets.captions import read_captions
from studio.datasets.datasets import Dataset, ScanProgress, ScanTerms
from studio.datasets.filters import Filter, Kind, entries_of
from studio.web.errors import FormError
from studio.web.forms import read_form, text_of
from studio.web.pages import redirect, render
from trainer.data.captioning.text import CaptionLanguage

router = APIRouter(prefix="/datasets")

_SCAN_SECONDS = 120.0
_CAPTION_LANGUAGES: dict[str, tuple[CaptionLanguage, ...]] = {"both": ("zh", "en"), "zh": ("zh",), "en": ("en",)}


class _BulkForm(BaseModel):
    action: Action
    find: str = ""
    text: str = ""
    kind: Kind = "all"
    filter_text: Annotated[str, Field(max_length=500)] = ""


class _DescribeForm(BaseModel):
    language: Literal["both", "zh", "en"] = "both"


@router.post("/bulk")
async def change_captions(request: Request) -> Response:
    """Change the captions of all pictures that the filter keeps."""
    training = studio_of(request).training
    async with request.form() as form:
        asked = read_form(_BulkForm, form)
        edit = read_form(CaptionEdit, form)
        dataset = training.datasets.open(text_of(form, "path"))
        await run_in_threadpool(_change, training, dataset, edit, Filter(kind=asked.kind, text=asked.filter_text))
        return _back(request, form)


@router.post("/undo")
async def undo(request: Request) -> Response:
    """Undo a change; captions that were edited since stay as they are."""
    training = studio_of(request).training
    async with request.form() as form:
        dataset = training.datasets.open(text_of(form, "path"))
        await run_in_threadpool(training.history(dataset).undo, text_of(form, "change"))
        return _back(request, form)


@router.post("/describe")
async def describe(request: Request) -> Response:
    """Have the configured model caption the pictures that have no caption."""
    training = studio_of(request).training
    async with request.form() as form:
        languages = _CAPTION_LANGUAGES[read_form(_DescribeForm, form).language]
        dataset = training.datasets.open(text_of(form, "path"))
        await run_in_threadpool(training.describer.begin, dataset, languages, training.history(dataset))
        return _back(request, form)


@router.get("/describing")
def describing(request: Request, path: str) -> Response:
    """Return how far the model is; the whole page again once it is done."""
    training = studio_of(request).training
    dataset = training.datasets.open(path)
    state = training.describer.state(dataset)
    if state is None or state.is_over:
        return Response(status_code=204, headers={"HX-Refresh": "true"})
    return render(request, "dataset_describing.html", dataset=dataset, describing=state, url=_url)


def _change(training: TrainingServices, dataset: Dataset, edit: CaptionEdit, chosen: Filter) -> None:
    """Raises ``FormError`` if nothing would change."""
    found = training.scans.ask(dataset, ScanTerms(), wait_seconds=_SCAN_SECONDS)
    if isinstance(found, ScanProgress):
        raise FormError("captions_still_read", "the captions are still being read", remedy="try again in a moment")
    entries = entries_of(found, lambda key: read_captions(training.datasets.file(dataset, key)))
    pictures = []
    for entry in entries:
        if chosen.keeps(entry):
            training.datasets.file(dataset, entry.key)
            pictures.append(dataset.folder / entry.key)
    if not training.history(dataset).change(pictures, edit):
        raise FormError(
            "captions_unchanged", "no caption of the pictures that are shown would change",
            remedy="check the text and the filter", field="find" if edit.action == "replace" else "text",
        )  # fmt: skip


def _back(request: Request, form: FormData) -> Response:
    """Show the dataset again, with the same filter."""
    query = {name: text_of(form, name) for name in ("path", "flavour", "resolution", "kind")}
    query["text"] = text_of(form, "filter_text")
    return redirect(request, _url("/datasets/view", **{name: value for name, value in query.items() if value}))


def _url(route: str, /, **query: object) -> str:
    return f"{route}?{urlencode(query)}"
