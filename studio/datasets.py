"""Datasets as the studio sees them: folders of pictures, uploaded ones and those that the operator lets it see. No torch.

What is in one, and what a training would drop, is what the trainer's own scan says.
"""

import hashlib
import re
import shutil
import threading
import unicodedata
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as StillRunning
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from longcat.errors import ConfigError, DataError
from longcat.flavour import resolve
from longcat.prompt import tokenize_body
from longcat.tokenizer import load_tokenizer, plain_ids
from trainer.config import GRID_PX
from trainer.dataset import scan
from trainer.dataset_config import DatasetConfig, parse_sizes
from trainer.inventory import Inventory
from trainer.pictures import ENDINGS

Strategy = Literal["textfile", "filename", "csv", "json", "jsonl"]
_NAME = re.compile(r"^\w[\w .-]{0,63}$")
_WAIT_SECONDS = 2.0
"""A scan that takes longer is asked for again."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A folder of pictures."""

    name: str
    """Of the folder."""
    folder: Path
    """Absolute, without links."""
    is_uploaded: bool
    """Whether it is the studio's own, to be added to and deleted."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a training would ask of the pictures."""

    flavour: str = "embedded"
    """Of which the captions are to be short enough; only a model that is on this machine anyway can tell."""
    resolution: str = "128"
    """As in a configuration."""
    caption_strategy: Strategy = "textfile"


@dataclass(frozen=True, kw_only=True)
class Looking:
    """A scan under way."""

    done: int
    total: int


class Datasets:
    """What there is below ``uploads``, and below the roots that the operator allows."""

    def __init__(self, uploads: Path, roots: Sequence[Path] = ()) -> None:
        uploads.mkdir(parents=True, exist_ok=True)
        self.uploads = uploads.resolve()
        self.roots = tuple(root.expanduser().resolve() for root in roots)

    def list(self) -> list[Dataset]:
        """Uploaded ones, then the roots and the folders right below them that have pictures, by name."""
        others = [folder for root in self.roots for folder in (root, *_visible(root)) if _has_pictures(folder)]
        found = []
        for folder in (*_visible(self.uploads), *others):
            with suppress(DataError):  # a link that leads elsewhere is not for us to see
                found.append(self.open(str(folder)))
        return found

    def open(self, path: str) -> Dataset:
        """The folder of that path. Raises ``DataError`` if it is not there or not below an allowed root."""
        folder = self.allowed(Path(path).expanduser())
        if not folder.is_dir():
            raise DataError(f"dataset {path} is no folder that is there; give the one that holds the pictures")
        return Dataset(name=folder.name, folder=folder, is_uploaded=folder.parent == self.uploads)

    def file(self, dataset: Dataset, key: str) -> Path:
        """A file of a dataset. Raises ``DataError`` if it is not there, or a link leads out of the allowed roots."""
        path = self.allowed(dataset.folder / key)
        if not path.is_file():
            raise DataError(f"{key} is not in dataset {dataset.name!r}; it may have been removed")
        return path

    def free_name(self, wanted: str) -> str:
        """A name that an uploaded dataset can have, from what was typed. Raises ``DataError`` if it is taken or empty."""
        name = re.sub(r"[^\w .-]", "", unicodedata.normalize("NFC", wanted)).strip(" .-_")[:64].strip()
        if not _NAME.match(name):
            raise DataError(f"name {wanted!r} has no letter or digit to call a folder by; give one, as my-pictures")
        if (self.uploads / name).exists():
            raise DataError(f"a dataset {name!r} is there already; give another name, or add to that one")
        return name

    def delete(self, dataset: Dataset) -> None:
        """Remove an uploaded dataset for good. Raises ``DataError`` for one that is not the studio's."""
        if not dataset.is_uploaded:
            raise DataError(f"dataset {dataset.folder} was not uploaded here; remove it where it came from")
        gone = dataset.folder.with_name(f".deleted-{dataset.name}")
        shutil.rmtree(gone, ignore_errors=True)
        dataset.folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def allowed(self, path: Path) -> Path:
        """Where a path leads. Raises ``DataError`` if that is not below an allowed root."""
        try:
            found = path.resolve()
        except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a zero byte
            raise DataError(f"path {str(path)!r} cannot be followed: {error}") from error
        if not any(found.is_relative_to(root) for root in (self.uploads, *self.roots)):
            places = ", ".join(map(str, (self.uploads, *self.roots)))
            raise DataError(f"{path} is not below {places}; the operator allows more with --data-root")
        return found


class Scans:
    """Looks through datasets in a thread, one after the other; what was learnt of pictures is kept from scan to scan."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="scan")
        self._lock = threading.Lock()
        self._running: dict[tuple[Path, Terms], tuple[Future[Inventory], list[int]]] = {}

    def close(self) -> None:
        """Wait for none that is still to come."""
        self._pool.shutdown(cancel_futures=True)

    def ask(self, dataset: Dataset, terms: Terms, *, wait_seconds: float = _WAIT_SECONDS) -> Inventory | Looking:
        """What is in it now, or how far the scan is: ask again. Raises what the scan raises."""
        key = (dataset.folder, terms)
        with self._lock:
            if key not in self._running:
                counts = [0, 0]
                self._running[key] = (self._pool.submit(self._scan, dataset, terms, counts), counts)
            future, counts = self._running[key]
        try:
            inventory = future.result(wait_seconds)
        except StillRunning:
            return Looking(done=counts[0], total=counts[1])
        finally:
            if future.done():
                with self._lock:
                    self._running.pop(key, None)
        return inventory

    def _scan(self, dataset: Dataset, terms: Terms, counts: list[int]) -> Inventory:
        def count(done: int, total: int) -> None:
            counts[:] = (done, total)

        config = dataset_config(dataset, terms)
        index = hashlib.sha256(str(dataset.folder).encode("utf-8", "surrogateescape")).hexdigest()[:24]
        flavour = resolve("embedded") if terms.flavour == "embedded" else None
        tokenize = plain_ids(load_tokenizer(flavour.folder)) if flavour else None
        return scan(
            (config,),
            resolution=_sizes(terms.resolution),
            resolution_type="pixel_area",
            alignment_px=GRID_PX,
            index_file=self._cache / f"{index}.json",
            count_tokens=(lambda text: len(tokenize_body(text, tokenize))) if tokenize else None,
            max_prompt_tokens=flavour.settings.max_prompt_tokens if flavour else None,
            allow_empty=True,
            on_picture=count,
        )


def dataset_config(dataset: Dataset, terms: Terms) -> DatasetConfig:
    """The dataset as a training is told of it."""
    name = re.sub(r"[^\w .-]", "", dataset.name).lstrip(" .-") or "pictures"
    return DatasetConfig(id=name, instance_data_dir=str(dataset.folder), caption_strategy=terms.caption_strategy)


def _sizes(resolution: str) -> tuple[str | float, ...]:
    try:
        return tuple(parse_sizes(resolution))
    except ValueError as error:
        raise ConfigError(f"resolution {error}; give one as 1024 or 1024x1024,1344x768") from error


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError:  # not for us to see: there is nothing to offer
        return []


def _has_pictures(folder: Path) -> bool:
    try:
        return any(entry.suffix.lower() in ENDINGS for entry in folder.iterdir())
    except OSError:
        return False
