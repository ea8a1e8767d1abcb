"""Datasets of the studio: folders of pictures, uploaded or below the operator's data roots. No torch.

The trainer's own scan determines the contents of a dataset and the pictures that a training would drop.
"""

import hashlib
import math
import re
import shutil
import threading
import time
import unicodedata
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as StillRunning
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from longcat.errors import ConfigError, DataError, UserError
from longcat.model.flavour import describe
from longcat.model.shape import GRID_PX
from longcat.problem import Problem, reason_of
from longcat.sampling.encoding.picture_file import MAX_PIXELS
from trainer.config.dataset_options import DatasetConfig
from trainer.config.options import TrainConfig
from trainer.config.reading.sizes import parse_sizes
from trainer.data.inventory import Inventory
from trainer.data.pictures import ENDINGS
from trainer.data.scan import prompt_limit, scan, scan_options
from trainer.data.scanning.options import ScanOptions

Strategy = Literal["textfile", "filename", "csv", "json", "jsonl"]
_NAME = re.compile(r"\w[\w .-]{0,63}")
_MOST_NAME_BYTES = 200
"""File systems allow 255; ``.deleted-`` is put before."""
_WAIT_SECONDS = 2.0
"""Longest wait for a scan's result; after it the page polls."""
_COLLECT_SECONDS = 10.0
"""Time in which a page that polls fetches a finished scan; a later page begins another, for what is there by then."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A folder of pictures."""

    name: str
    """Name of the folder."""
    folder: Path
    """Absolute path, with links resolved."""
    is_uploaded: bool
    """True for a dataset of the studio itself, which can be extended and deleted."""


@dataclass(frozen=True, kw_only=True)
class ScanTerms:
    """Options of a training that decide which pictures it can use."""

    flavour: str = "embedded"
    """Flavour whose token limit captions are checked against, if its tokenizer is on this machine."""
    resolution: str = "128"
    """The training option of the same name."""
    caption_strategy: Strategy = "textfile"


@dataclass(frozen=True, kw_only=True)
class ScanProgress:
    """Progress of a running scan."""

    done: int
    total: int


class Datasets:
    """Datasets below ``uploads`` and below the roots that the operator allows."""

    def __init__(self, uploads: Path, roots: Sequence[Path] = ()) -> None:
        uploads.mkdir(parents=True, exist_ok=True)
        self.uploads = uploads.resolve()
        self.roots = tuple(root.expanduser().resolve() for root in roots)

    def list(self) -> list[Dataset]:
        """Return uploaded datasets, then the roots and their direct subfolders that have pictures, by name."""
        others = [folder for root in self.roots for folder in (root, *_visible(root)) if _has_pictures(folder)]
        found = []
        for folder in (*_visible(self.uploads), *others):
            with suppress(DataError):  # a link out of the allowed roots
                found.append(self.open(str(folder)))
        return found

    def open(self, path: str) -> Dataset:
        """Return the dataset at a path. Raises ``DataError`` if it does not exist or is not below an allowed root."""
        folder = self.allowed(Path(path))
        if not folder.is_dir():
            raise DataError(
                "dataset_not_a_folder", "no such folder", remedy="give the folder that holds the pictures",
                field="path", value=path,
            )  # fmt: skip
        return Dataset(name=folder.name, folder=folder, is_uploaded=folder.parent == self.uploads)

    def file(self, dataset: Dataset, key: str) -> Path:
        """Return a file's path. Raises ``DataError`` if it does not exist, or a link leads out of the allowed roots."""
        path = self.allowed(dataset.folder / key)
        if not path.is_file():
            raise DataError(
                "not_in_dataset", "not in dataset {dataset}; it may have been removed",
                field="file", value=key, dataset=dataset.name,
            )  # fmt: skip
        return path

    def free_name(self, requested: str) -> str:
        """Turn a typed text into a valid name of an uploaded dataset. Raises ``DataError`` if it is taken or empty."""
        name = re.sub(r"[^\w .-]", "", unicodedata.normalize("NFC", requested)).strip(" .-_")[:64]
        name = name.encode()[:_MOST_NAME_BYTES].decode(errors="ignore").strip()
        if not _NAME.fullmatch(name):
            raise DataError(
                "dataset_name_without_letters", "has no letter or digit that a folder name can have",
                remedy="give a name such as my-pictures", field="name", value=requested,
            )  # fmt: skip
        if (self.uploads / name).exists():
            raise DataError(
                "dataset_exists", "a dataset has that name already",
                remedy="give another name, or add files to that dataset", field="name", value=name,
            )  # fmt: skip
        return name

    def delete(self, dataset: Dataset) -> None:
        """Delete an uploaded dataset permanently. Raises ``DataError`` for any other dataset."""
        if not dataset.is_uploaded:
            raise DataError(
                "dataset_not_uploaded", "the dataset was not uploaded here",
                remedy="remove it where it came from", field="path", value=str(dataset.folder),
            )  # fmt: skip
        gone = dataset.folder.with_name(f".deleted-{dataset.name}")
        shutil.rmtree(gone, ignore_errors=True)
        dataset.folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def allowed(self, path: Path) -> Path:
        """Resolve a path, ``~`` included. Raises ``DataError`` if it is not below an allowed root."""
        try:
            found = path.expanduser().resolve()
            found.exists()  # raises for a name that is too long
        except (OSError, RuntimeError, ValueError) as error:  # no such user, a loop of links, a null byte
            raise DataError(
                "dataset_path_unresolvable", "cannot be followed: {reason}",
                field="path", value=str(path), reason=reason_of(error),
            ) from error  # fmt: skip
        if not any(found.is_relative_to(root) for root in (self.uploads, *self.roots)):
            allowed = ", ".join(map(str, (self.uploads, *self.roots)))
            raise DataError(
                "dataset_path_not_allowed", "not below {folders}", remedy="start the studio with --data-root to allow more",
                field="path", value=str(path), folders=allowed,
            )  # fmt: skip
        return found


@dataclass(eq=False, kw_only=True)
class _Scan:
    future: Future[Inventory]
    counts: list[int]
    """Pictures read, and pictures in all."""
    ended: float = math.inf
    """Time of its end, by the monotonic clock."""


class Scans:
    """Scans of datasets in one background thread. Facts about pictures are cached from scan to scan."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="scan")
        self._lock = threading.Lock()
        self._running: dict[tuple[Path, ScanTerms], _Scan] = {}
        """Scans whose result has not been returned yet."""

    def close(self) -> None:
        """Cancel the queued scans."""
        self._pool.shutdown(cancel_futures=True)

    def is_known(self, dataset: Dataset) -> bool:
        """Return True if the facts of the dataset's pictures are cached, so that a scan is short."""
        return self._index(dataset).exists()

    def forget(self, folder: Path) -> None:
        """Begin anew at the next question: a scan that has begun may miss a file of the dataset that has changed since."""
        with self._lock:
            for key in [key for key in self._running if key[0] == folder]:
                del self._running[key]

    def ask(
        self, dataset: Dataset, terms: ScanTerms, *, wait_seconds: float = _WAIT_SECONDS
    ) -> Inventory | ScanProgress:
        """Return the result of a scan, or the progress of one that still runs. Raises the scan's error."""
        key = (dataset.folder, terms)
        with self._lock:
            running = self._running.get(key)
            if running is None or time.monotonic() - running.ended > _COLLECT_SECONDS:
                running = self._running[key] = self._begin(dataset, terms)
        try:
            inventory = running.future.result(wait_seconds)
        except StillRunning:
            return ScanProgress(done=running.counts[0], total=running.counts[1])
        finally:
            if running.future.done():
                with self._lock:
                    if self._running.get(key) is running:
                        del self._running[key]
        return inventory

    def _begin(self, dataset: Dataset, terms: ScanTerms) -> _Scan:
        counts = [0, 0]
        running = _Scan(future=self._pool.submit(self._scan, dataset, terms, counts), counts=counts)

        def note_end(_: Future[Inventory]) -> None:
            running.ended = time.monotonic()

        running.future.add_done_callback(note_end)
        return running

    def problems(self, config: TrainConfig) -> tuple[Problem, ...]:
        """Return the problems of a training's data; empty if there are none, or if the scan takes long."""
        if any(data.type != "local" for data in config.datasets):
            return ()
        future = self._pool.submit(scan, config.datasets, scan_options(config, None))
        try:
            future.result(_WAIT_SECONDS)
        except StillRunning:
            future.cancel()
        except UserError as error:
            return error.problems
        return ()

    def _scan(self, dataset: Dataset, terms: ScanTerms, counts: list[int]) -> Inventory:
        def count(done: int, total: int) -> None:
            counts[:] = (done, total)

        config = dataset_config(dataset, terms)
        return scan(
            (config,),
            ScanOptions(
                resolution=_sizes(terms.resolution),
                resolution_type="pixel_area",
                alignment_px=GRID_PX,
                max_pixels=MAX_PIXELS,
                prompt_limit=cache(lambda: prompt_limit(describe("embedded"))) if terms.flavour == "embedded" else None,
                on_picture=count,
            ),
            index_file=self._index(dataset),
            allow_empty=True,
        )

    def _index(self, dataset: Dataset) -> Path:
        name = hashlib.sha256(str(dataset.folder).encode("utf-8", "surrogateescape")).hexdigest()[:24]
        return self._cache / f"{name}.json"


def dataset_config(dataset: Dataset, terms: ScanTerms) -> DatasetConfig:
    """Return the dataset's entry in a training configuration."""
    name = re.sub(r"[^\w .-]", "", dataset.name).lstrip(" .-") or "pictures"
    return DatasetConfig(id=name, instance_data_dir=str(dataset.folder), caption_strategy=terms.caption_strategy)


def _sizes(resolution: str) -> tuple[str | float, ...]:
    try:
        return tuple(parse_sizes(resolution))
    except ValueError as error:
        raise ConfigError(
            "scan_resolution_not_sizes", "neither numbers nor sizes", remedy="give 1024, or 1024x1024,1344x768",
            field="resolution", value=resolution,
        ) from error  # fmt: skip


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError:  # not readable: offer none of its folders
        return []


def _has_pictures(folder: Path) -> bool:
    try:
        return any(entry.suffix.lower() in ENDINGS for entry in folder.iterdir())
    except OSError:
        return False
