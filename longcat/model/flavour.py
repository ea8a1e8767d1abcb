"""Flavours: the files of a model by its name, their hash, and the model's defaults. No torch.

A model is a directory that ``LongCatImagePipeline.from_pretrained`` can read. Settings for which that layout has no place
(prompt length, default size) are in ``lithograph.json`` beside ``model_index.json``; the defaults are LongCat-Image's.
"""

import difflib
import hashlib
import io
import logging
import math
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from tqdm import tqdm

from longcat.checksum import checksums
from longcat.errors import FlavourError, HubError
from longcat.logs import log_event
from longcat.model.published.models import HUB_IDS, ModelSettings, is_edit_pipeline, published_settings
from longcat.problem import Problem
from longcat.validation import problems_of

log = logging.getLogger("lithograph")

EMBEDDED_FOLDER = Path(__file__).parent.parent / "embedded"
PUBLISHED_FOLDER = Path(__file__).parent / "published"
"""The sizes of LongCat-Image, which all published flavours have: enough to plan, not to load."""
IMAGE_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
"""Files in text_processor, of which a model that edits has one, by transformers 4 or 5: what its vision tower takes."""
COMPONENTS = ("scheduler", "text_encoder", "tokenizer", "transformer", "vae")
SETTINGS_FILE = "lithograph.json"
QUALITY_FILE = "quality.json"
"""Beside a model, but no part of it and its hash (``longcat.sampling.quality``)."""
SIZES_FILE = "sizes.json"
"""The same: the sizes at which the model was measured."""

ALL_FILES = [
    "model_index.json",
    SETTINGS_FILE,
    QUALITY_FILE,
    SIZES_FILE,
    *(f"{part}/*" for part in (*COMPONENTS, "text_processor")),
]
_CONFIGURATIONS = ["model_index.json", SETTINGS_FILE, *(f"{part}/*.json" for part in COMPONENTS)]
DOWNLOAD_EVENT = "model_download"
"""Log event of a download under way, with ``model``, ``done_bytes`` and ``total_bytes``."""
_LOG_SECONDS = 5.0
_RETRYABLE = {408, 429, 500, 502, 503, 504}
"""HTTP statuses after which a later attempt may succeed."""
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_Settings = TypeVar("_Settings", bound=BaseModel)
_LFS_BLOB = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Flavour:
    """A model that can be loaded."""

    name: str
    """A published flavour (final, dev, edit, edit-turbo), embedded, a hub id, or the last part of a directory's path: images
    carry it, and must not reveal paths."""
    folder: Path
    revision: str | None
    """The hub's commit, or None for local files."""
    hash: str
    """SHA-256 over the names and contents of all files that make the model, as 64 hex digits."""
    settings: ModelSettings

    @property
    def adapters(self) -> Path | None:
        """Directory of the adapters that come with the model, in the layout of adapter storage; None without any."""
        folder = self.folder / "adapters"
        return folder if folder.is_dir() else None

    @property
    def adapters_label(self) -> str:
        """Name of that directory in errors and lists, without its path."""
        return f"{self.name}/adapters"

    def component_hash(self, component: str) -> str:
        """Return the SHA-256 of one component's files, for caches that depend on that component alone."""
        return _hash(
            self.folder,
            [path for path in _model_files(self.folder) if path.relative_to(self.folder).parts[0] == component],
        )


@dataclass(frozen=True, kw_only=True)
class Description:
    """A model's configuration, without its weights."""

    folder: Path
    settings: ModelSettings


def describe(name: str, *, revision: str | None = None) -> Description:
    """Find a model's configuration; from the hub, only JSON files are downloaded: kilobytes. Raises as ``resolve``."""
    folder = _folder(name, revision, _CONFIGURATIONS)
    return Description(folder=folder, settings=_settings(name, folder))


def structure(name: str, *, revision: str | None = None) -> Description:
    """Find a model's sizes, without the hub for the published flavours. Raises as ``resolve``."""
    if name in (*HUB_IDS, *HUB_IDS.values()) and revision is None and not Path(name).is_dir():
        return Description(folder=PUBLISHED_FOLDER, settings=published_settings(name))
    return describe(name, revision=revision)


def resolve(name: str, *, revision: str | None = None) -> Flavour:
    """Find a flavour, and download it from the hub if it is not in the cache.

    ``name`` is ``final``, ``dev``, ``edit``, ``edit-turbo``, ``embedded``, a directory, or a hub id (``organisation/name``);
    ``revision`` a branch, tag or commit of the hub. Raises ``FlavourError`` if there is no such model or files are missing,
    ``HubError`` if the hub cannot be reached.
    """
    folder = _folder(name, revision, ALL_FILES)
    if name == "embedded" or folder == Path(name):
        return _local(name if name == "embedded" else folder.resolve().name, folder)
    return replace(_local(name, folder), revision=folder.name)


def _folder(name: str, revision: str | None, patterns: list[str]) -> Path:
    """Return a model's directory, after downloading the files that match ``patterns``."""
    if name == "embedded":
        return EMBEDDED_FOLDER
    if name not in HUB_IDS and Path(name).is_dir():
        return Path(name)
    hub_id = HUB_IDS.get(name, name)
    if not _HUB_ID.fullmatch(hub_id):
        raise _unknown(name)
    return _downloaded(name, hub_id, revision, patterns)


def _downloaded(name: str, hub_id: str, revision: str | None, patterns: list[str]) -> Path:
    """Return the directory of a hub's model in the cache, after downloading what the cache lacks."""
    import httpx  # here, as the hub's library, because most commands start without a download
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=patterns, tqdm_class=_bar_of(hub_id)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, httpx.HTTPError, OSError) as error:
        raise _not_downloaded(name, hub_id, error) from error


def _unknown(name: str) -> FlavourError:
    known = ["embedded", *HUB_IDS]
    if nearest := difflib.get_close_matches(name, known, n=1):
        return FlavourError(
            "flavour_misspelt",
            "not a known model, a directory or a hub id",
            remedy="did you mean {nearest!r}?",
            field="flavour",
            value=name,
            nearest=nearest[0],
        )
    return FlavourError(
        "flavour_unknown",
        "not a known model, a directory or a hub id",
        remedy="give {known}, a directory, or a hub id (organisation/name)",
        field="flavour",
        value=name,
        known=", ".join(known),
    )


def _not_downloaded(name: str, hub_id: str, error: Exception) -> HubError | FlavourError:
    import httpx
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    is_unreachable = isinstance(error, LocalEntryNotFoundError | httpx.TransportError) or status in _RETRYABLE
    problem = Problem(
        code="flavour_not_downloaded",
        template=(
            "{hub_id} cannot be downloaded ({reason}); tried in this order: a directory {name}, {hub}, the cache {cache}"
        ),
        remedy_template=(
            "check the name and the network; set HF_ENDPOINT to a mirror, or HF_TOKEN for a repository that needs one; "
            "or download the model by another way, such as ModelScope's, and give its directory as the flavour"
        ),
        field="flavour",
        value=name,
        details={
            "hub_id": hub_id,
            "name": name,
            "reason": f"{type(error).__name__}: {str(error).splitlines()[0]}",
            "hub": _hub_in_use(),
            "cache": constants.HF_HUB_CACHE,
        },
    )
    return (HubError if is_unreachable else FlavourError).of([problem])


def _bar_of(hub_id: str) -> type[tqdm] | None:
    """Return the progress bar of a download: None, for the hub's own, at a terminal; elsewhere one that logs."""
    if sys.stderr.isatty():
        return None

    class DownloadLog(tqdm):
        """A bar that is not shown, and logs its bytes every few seconds."""

        def __init__(self, *args: Any, **options: Any) -> None:
            self._is_bytes = options.get("unit") == "B"
            self._logged_at = -math.inf
            options.pop("name", None)
            super().__init__(*args, **options | {"file": io.StringIO(), "disable": False})

        def update(self, n: float | None = 1) -> bool | None:
            updated: bool | None = super().update(n)
            if self._is_bytes and time.monotonic() - self._logged_at > _LOG_SECONDS:
                self._logged_at = time.monotonic()
                log_event(log, DOWNLOAD_EVENT, model=hub_id, done_bytes=int(self.n), total_bytes=int(self.total or 0))
            return updated

    return DownloadLog


def _hub_in_use() -> str:
    """Return the hub's address, with what decides whether and how it is asked."""
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        return f"{constants.ENDPOINT} (HF_HUB_OFFLINE)"
    return f"{constants.ENDPOINT} (HF_TOKEN)" if get_token() else str(constants.ENDPOINT)


def _hash(folder: Path, files: Sequence[Path]) -> str:
    """Hash names and contents. Weights in the hub's cache are named by their SHA-256, which saves reading 30 GB."""
    contents = {path: path.resolve().name for path in files if path.is_symlink()}
    contents = {path: blob for path, blob in contents.items() if _LFS_BLOB.fullmatch(blob)}
    contents |= checksums(path for path in files if path not in contents)
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(folder).as_posix()}\0{contents[path]}\n".encode())
    return digest.hexdigest()


def _local(name: str, folder: Path) -> Flavour:
    missing = [part for part in ("model_index.json", *COMPONENTS) if not (folder / part).exists()]
    if missing:
        raise _incomplete(name, folder, missing)
    settings = _settings(name, folder)
    if settings.edits and not any((folder / "text_processor" / file).exists() for file in IMAGE_PROCESSOR_FILES):
        raise _incomplete(name, folder, [f"text_processor/{IMAGE_PROCESSOR_FILES[0]}"])
    files = _model_files(folder, edits=settings.edits)
    return Flavour(name=name, folder=folder, revision=None, hash=_hash(folder, files), settings=settings)


def _incomplete(name: str, folder: Path, missing: Sequence[str]) -> FlavourError:
    return FlavourError(
        "flavour_incomplete",
        "{folder} lacks {missing}",
        remedy="give a directory that LongCatImagePipeline.save_pretrained wrote",
        field="flavour",
        value=name,
        folder=str(folder),
        missing=", ".join(missing),
    )


def _settings(name: str, folder: Path) -> ModelSettings:
    """Read a model's settings. Those that its file leaves out are the published model's of its name or its kind."""
    given = read_settings(ModelSettings, folder / SETTINGS_FILE, flavour=name)
    published = published_settings(name, edits=given.edits or is_edit_pipeline(folder / "model_index.json"))
    return published.model_copy(update=given.model_dump(exclude_unset=True))


def read_settings(kind: type[_Settings], path: Path, *, flavour: str) -> _Settings:
    """Read settings beside a model; the defaults where there is no file. Raises ``FlavourError`` if it is invalid."""
    if not path.exists():
        return kind()
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise FlavourError(
            "flavour_settings_invalid",
            "{path} is invalid: {cause}",
            remedy="correct the file",
            field="flavour",
            value=flavour,
            path=str(path),
            cause=next(problems_of(error, kind)),
        ) from error


def _model_files(folder: Path, *, edits: bool = False) -> list[Path]:
    tops = [folder / name for name in ("model_index.json", SETTINGS_FILE) if (folder / name).exists()]
    tops += (folder / "text_processor").glob("chat_template.*")
    if edits:
        tops += (path for file in IMAGE_PROCESSOR_FILES if (path := folder / "text_processor" / file).exists())
    inner = [path for part in COMPONENTS for path in (folder / part).rglob("*") if path.is_file()]
    return sorted(tops + inner, key=lambda path: path.relative_to(folder).as_posix())
