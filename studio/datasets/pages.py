"""The Datasets pages: the list, contents and dropped pictures of a dataset, uploads, caption editing."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, get_args
from urllib.parse import urlencode

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from longcat.errors import DataError, UserError
from longcat.problem import Problem
from studio.context import TrainingServices, studio_of
from studio.datasets.captions import read_captions, write_captions
from studio.datasets.cards import card_of
from studio.datasets.datasets import Dataset, ScanProgress, ScanTerms, Strategy
from studio.datasets.filters import KINDS, CaptionedPicture, Filter, entries_of, tag_counts
from studio.datasets.uploads import Received, add, create
from studio.web.errors import ChangeForbiddenError, FormError, PageNotFoundError
from studio.web.forms import text_of
from studio.web.pages import is_fragment, redirect, render
from studio.web.static_files import STATIC_FOLDER
from trainer.data.inventory import Dropped, Inventory
from trainer.data.pictures import ENDINGS

router = APIRouter(prefix="/datasets")

PAGE_PICTURES = 48
_FORM_FIELDS = 8
_FIRST_PICTURES = 12
"""Shown while a dataset is being scanned."""
_PICTURE_SECONDS = 3600
_LARGE_PX = 1024
_REFRESH_SECONDS = 10.0
_STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
_FLAVOURS = ("embedded", "final", "dev")
_USUAL = {"embedded": "128", "final": "1024", "dev": "1024"}
"""Resolutions at which the models were trained."""


@router.get("")
def list_page(request: Request) -> Response:
    """Show all datasets, and the forms that add one."""
    training = studio_of(request).training
    cards = [card_of(dataset) for dataset in training.datasets.list()]
    return render(request, "datasets.html", cards=cards, roots=training.datasets.roots, url=_url)


@router.post("")
async def upload(request: Request) -> Response:
    """Create a dataset from uploaded files."""
    training = studio_of(request).training
    async with request.form(max_files=training.limits.files, max_fields=_FORM_FIELDS) as form:
        with _problems_beside("name"):
            folder = training.datasets.uploads / training.datasets.free_name(text_of(form, "name"))
        with _problems_beside("files"):
            received = await run_in_threadpool(create, folder, _files(form), training.limits)
    return _uploaded(request, str(folder), received)


@router.post("/add")
async def upload_more(request: Request) -> Response:
    """Add uploaded files to an uploaded dataset."""
    training = studio_of(request).training
    async with request.form(max_files=training.limits.files, max_fields=_FORM_FIELDS) as form:
        dataset = training.datasets.open(text_of(form, "path"))
        if not dataset.is_uploaded:
            raise ChangeForbiddenError(
                "dataset_of_elsewhere", "the dataset was not uploaded here", remedy="add files where it came from",
                field="path", value=str(dataset.folder),
            )  # fmt: skip
        with _problems_beside("files"):
            received = await run_in_threadpool(add, dataset.folder, _files(form), training.limits)
        training.scans.forget(dataset.folder)
    return _uploaded(request, str(dataset.folder), received)


@router.post("/delete")
async def delete(request: Request) -> Response:
    """Remove an uploaded dataset."""
    training = studio_of(request).training
    async with request.form() as form:
        dataset = training.datasets.open(text_of(form, "path"))
    await run_in_threadpool(training.datasets.delete, dataset)
    return redirect(request, "/datasets")


@router.get("/view")
def view(
    request: Request,
    path: str = "",
    caption_strategy: str = "textfile",
    flavour: str = "embedded",
    resolution: str = "",
    page: int = 1,
    kind: str = "all",
    text: str = "",
    refresh: bool = False,
) -> Response:
    """Show the contents of a dataset. A long scan is shown in progress, and the page polls for its result.

    ``refresh``: the page shows the contents already; the reply is empty if the scan takes long.
    """
    training = studio_of(request).training
    dataset = training.datasets.open(path)
    if caption_strategy not in _STRATEGIES or flavour not in _FLAVOURS or kind not in KINDS:
        raise PageNotFoundError
    chosen = Filter(kind=kind, text=text.strip())
    terms = ScanTerms(
        flavour=flavour,
        resolution=resolution or _USUAL[flavour],
        caption_strategy=caption_strategy,
    )
    shown: dict[str, Any] = {"dataset": dataset, "terms": terms, "url": _url, "strategies": _STRATEGIES}
    shown |= {"flavours": _FLAVOURS, "looking": None, "report": None, "problem": None, "page": page}
    shown |= {"filter": chosen, "kinds": KINDS, "first": (), "describing": training.describer.state(dataset)}
    try:
        found = _scanned(request, training, dataset, terms, refresh=refresh)
    except UserError as error:
        shown["problem"] = error.problems[0]
    else:
        if isinstance(found, ScanProgress):
            if refresh:
                return Response(status_code=204)
            card = card_of(dataset, most=_FIRST_PICTURES)
            shown |= {"looking": found, "first": card.first, "pictures": card.pictures}
        else:
            shown["report"] = _report(training, dataset, terms, found, chosen, page)
            shown |= {"changes": training.history(dataset).list(), "can_describe": training.describer.is_configured}
    return render(request, "dataset_report.html" if is_fragment(request) else "dataset.html", **shown)


def _scanned(
    request: Request, training: TrainingServices, dataset: Dataset, terms: ScanTerms, *, refresh: bool
) -> Inventory | ScanProgress:
    """Return the result of a scan, or its progress. On a first visit, the page comes first, and then asks for the scan."""
    if is_fragment(request):
        return training.scans.ask(dataset, terms, wait_seconds=_REFRESH_SECONDS if refresh else 1.5)
    if training.scans.is_known(dataset):
        return training.scans.ask(dataset, terms, wait_seconds=0.2)
    return ScanProgress(done=0, total=0)


@router.post("/caption")
async def save_caption(request: Request) -> Response:
    """Write a picture's captions beside it."""
    training = studio_of(request).training
    async with request.form() as form:
        path, key, caption = (text_of(form, name) for name in ("path", "key", "caption"))
    dataset = training.datasets.open(path)
    picture = training.datasets.file(dataset, key)
    if picture.suffix.lower() not in ENDINGS:
        raise PageNotFoundError
    with _problems_beside("caption"):
        await run_in_threadpool(write_captions, picture, caption)
    training.scans.forget(dataset.folder)
    reply = render(request, "caption_saved.html", caption=read_captions(picture))
    reply.headers["HX-Trigger"] = "caption-saved"
    return reply


@router.get("/thumbnail")
def thumbnail(request: Request, path: str, key: str, large: bool = False) -> Response:
    """Send a thumbnail of a picture."""
    training = studio_of(request).training
    try:
        picture = training.datasets.file(training.datasets.open(path), key)
    except DataError as error:
        raise PageNotFoundError from error
    if picture.suffix.lower() not in ENDINGS:
        raise PageNotFoundError
    try:
        content = training.thumbnails.of(picture, side_px=_LARGE_PX) if large else training.thumbnails.of(picture)
    except DataError:  # the page shows the problem beside it
        return FileResponse(STATIC_FOLDER / "no-picture.svg")
    headers = {"Cache-Control": f"private, max-age={_PICTURE_SECONDS}"}
    return Response(content, media_type="image/webp", headers=headers)


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A file that a training would not use."""

    key: str
    problem: Problem
    is_picture: bool
    """True if the file can be shown as a picture, and perhaps captioned."""
    caption: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """The result of a scan, for one page of pictures."""

    inventory: Inventory
    buckets: tuple[tuple[str, int, float], ...]
    """Size, number of pictures, and that number as a share of the largest bucket's."""
    captions: int
    entries: tuple[CaptionedPicture, ...]
    """Pictures of this page that the filter keeps."""
    kept: int
    """Pictures that the filter keeps, on all pages."""
    without_caption: int
    tags: Sequence[tuple[str, int]]
    """The most frequent parts between commas, with the number of pictures that have them."""
    left_out: tuple[LeftOut, ...]
    pages: int
    is_editable: bool
    """True if captions are text files beside the pictures."""


def _report(
    training: TrainingServices, dataset: Dataset, terms: ScanTerms, found: Inventory, chosen: Filter, page: int
) -> Report:
    is_editable = terms.caption_strategy == "textfile"
    entries = entries_of(found, lambda key: read_captions(training.datasets.file(dataset, key)))
    kept = [entry for entry in entries if chosen.keeps(entry) and (entry.sample or chosen.is_on)]
    most = max(found.buckets.values(), default=1)
    start = (max(1, page) - 1) * PAGE_PICTURES
    return Report(
        inventory=found,
        buckets=tuple((str(bucket), count, count / most) for bucket, count in sorted(found.buckets.items())),
        captions=sum(found.languages.values()),
        entries=tuple(kept[start : start + PAGE_PICTURES]),
        kept=len(kept),
        without_caption=sum(not entry.captions for entry in entries),
        tags=tag_counts(entries),
        left_out=tuple(_left_out(training, dataset, dropped) for dropped in found.dropped),
        pages=-(-len(kept) // PAGE_PICTURES),
        is_editable=is_editable,
    )


def _left_out(training: TrainingServices, dataset: Dataset, dropped: Dropped) -> LeftOut:
    is_picture = PurePosixPath(dropped.key).suffix.lower() in ENDINGS
    caption = ""
    if is_picture:
        try:
            caption = read_captions(training.datasets.file(dataset, dropped.key))
        except DataError:  # its reason names the file already
            is_picture = False
    return LeftOut(key=dropped.key, problem=dropped.problem, is_picture=is_picture, caption=caption)


def _files(form: FormData) -> list[tuple[str, BinaryIO]]:
    given = form.getlist("files")
    return [(upload.filename, upload.file) for upload in given if isinstance(upload, UploadFile) and upload.filename]


def _uploaded(request: Request, folder: str, received: Received) -> Response:
    """Redirect to the dataset; if files were rejected, show their problems first."""
    if not received.refused:
        return redirect(request, _url("/datasets/view", path=folder))
    reply = render(request, "upload_result.html", received=received, name=Path(folder).name, folder=folder, url=_url)
    reply.headers["HX-Trigger"] = "dataset-added"
    return reply


@contextmanager
def _problems_beside(field: str) -> Iterator[None]:
    """Turn data errors into those of a form's field."""
    try:
        yield
    except DataError as error:
        raise FormError.of(
            problem if problem.field == field else problem.within(field=field) for problem in error.problems
        ) from error


def _url(route: str, /, **query: Any) -> str:
    return f"{route}?{urlencode(query)}"
