"""Flavour to model: where the files are, what they are, and the defaults that go with them. No torch.

A model is a directory as ``LongCatImagePipeline.from_pretrained`` reads it. What that layout has no place for (prompt
length, default size) stands in ``lithograph.json`` beside ``model_index.json``; without one, LongCat-Image's own apply.
"""

import difflib
import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from pydantic import BaseModel, ConfigDict, ValidationError

from longcat.errors import FlavourError, HubError

EMBEDDED_FOLDER = Path(__file__).parent / "embedded"
HUB_IDS = {"final": "meituan-longcat/LongCat-Image", "dev": "meituan-longcat/LongCat-Image-Dev"}
COMPONENTS = ("scheduler", "text_encoder", "tokenizer", "transformer", "vae")
SETTINGS_FILE = "lithograph.json"

_DOWNLOADED = ["model_index.json", SETTINGS_FILE, *(f"{part}/*" for part in (*COMPONENTS, "text_processor"))]
_DESCRIBED = ["model_index.json", SETTINGS_FILE, *(f"{part}/*.json" for part in COMPONENTS)]
_AWAY = {408, 429, 500, 502, 503, 504}
"""Statuses after which another try may do."""
_HUB_ID = re.compile(r"^\w[\w.-]*/\w[\w.-]*$")
_LFS_BLOB = re.compile(r"^[0-9a-f]{64}$")


class ModelSettings(BaseModel):
    """What a model was made for. The defaults are LongCat-Image's."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    max_prompt_tokens: int = 512
    """Tokens of a prompt, template aside; also where the image's positions start."""
    default_size_px: int = 1024
    """Width and height of a picture when a request names none."""
    max_pixels: int = 2048 * 2048
    """Largest width times height of a request, unless the server is configured otherwise."""
    default_steps: int = 30
    """Denoising steps when a request names none."""
    default_guidance_scale: float = 4.5
    """Classifier-free guidance when a request names none."""
    rewrites_prompts: bool = True
    """Whether the text encoder is a language model that can rewrite prompts."""


@dataclass(frozen=True, kw_only=True)
class Flavour:
    """A model that can be loaded."""

    name: str
    """final, dev, embedded, a hub id, or a directory's own name: pictures carry it, and no path of this machine."""
    folder: Path
    revision: str | None
    """The hub's commit, or None for local files."""
    hash: str
    """SHA-256 over the names and contents of all files that make the model, as 64 hex digits."""
    settings: ModelSettings

    def component_hash(self, component: str) -> str:
        """SHA-256 of one component's files: what was computed with it stays good while the others change."""
        return _hash(
            self.folder,
            (path for path in _model_files(self.folder) if path.relative_to(self.folder).parts[0] == component),
        )


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a model says of itself without its weights."""

    folder: Path
    settings: ModelSettings


def describe(name: str, *, revision: str | None = None) -> Description:
    """As ``resolve``, but of the hub's models only the descriptions are downloaded: kilobytes."""
    folder = _folder(name, revision, _DESCRIBED)
    return Description(folder=folder, settings=_settings(name, folder / SETTINGS_FILE))


def resolve(name: str, *, revision: str | None = None) -> Flavour:
    """Find a flavour, downloading it from the hub unless it is there.

    ``name`` is ``final``, ``dev``, ``embedded``, a directory, or a hub id (``organisation/name``); ``revision`` a branch,
    tag or commit of the hub. Raises ``FlavourError`` if there is no such model or its files are not whole,
    ``HubError`` if the hub cannot be reached.
    """
    folder = _folder(name, revision, _DOWNLOADED)
    if name == "embedded" or folder == Path(name):
        return _local(name if name == "embedded" else folder.resolve().name, folder)
    return replace(_local(name, folder), revision=folder.name)


def _folder(name: str, revision: str | None, patterns: list[str]) -> Path:
    """Where a model is, after what matches ``patterns`` was downloaded."""
    if name == "embedded":
        return EMBEDDED_FOLDER
    if name not in HUB_IDS and Path(name).is_dir():
        return Path(name)
    hub_id = HUB_IDS.get(name, name)
    if not _HUB_ID.match(hub_id):
        known = ["embedded", *HUB_IDS]
        near = [f"; did you mean {one!r}?" for one in difflib.get_close_matches(name, known, n=1)]
        raise FlavourError(
            f"flavour {name!r} is neither one of {', '.join(known)}, a directory, nor a hub id (organisation/name)"
            + "".join(near)
        )
    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, httpx.HTTPError, OSError) as error:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        is_away = isinstance(error, LocalEntryNotFoundError | httpx.TransportError) or status in _AWAY
        raise (HubError if is_away else FlavourError)(
            f"flavour {name!r}: cannot download {hub_id} ({type(error).__name__}: {str(error).splitlines()[0]}); check the "
            f"name and the network, or download it elsewhere and give its directory as the flavour"
        ) from error


def _hash(folder: Path, files: Iterable[Path]) -> str:
    """Weights in the hub's cache are stored under their SHA-256 already, so that 30 GB need not be read again."""
    digest = hashlib.sha256()
    for path in files:
        blob = path.resolve().name
        content = blob if path.is_symlink() and _LFS_BLOB.match(blob) else _sha256(path)
        digest.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    return digest.hexdigest()


def _local(name: str, folder: Path) -> Flavour:
    missing = [part for part in ("model_index.json", *COMPONENTS) if not (folder / part).exists()]
    if missing:
        raise FlavourError(
            f"flavour {name!r}: {folder} lacks {', '.join(missing)}; give a directory as "
            "LongCatImagePipeline.save_pretrained writes it"
        )
    settings = _settings(name, folder / SETTINGS_FILE)
    return Flavour(name=name, folder=folder, revision=None, hash=_hash(folder, _model_files(folder)), settings=settings)


def _settings(name: str, path: Path) -> ModelSettings:
    if not path.exists():
        return ModelSettings()
    try:
        return ModelSettings.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file as a whole"
        raise FlavourError(f"flavour {name!r}: {path} is wrong at {where}: {first['msg']}") from error


def _model_files(folder: Path) -> Iterator[Path]:
    tops = [folder / name for name in ("model_index.json", SETTINGS_FILE) if (folder / name).exists()]
    tops += (folder / "text_processor").glob("chat_template.*")
    inner = [path for part in COMPONENTS for path in (folder / part).rglob("*") if path.is_file()]
    yield from sorted(tops + inner, key=lambda path: path.relative_to(folder).as_posix())


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
