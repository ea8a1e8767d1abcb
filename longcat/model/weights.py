"""Weights of a published flavour: in the cache, to be downloaded, or out of reach. No torch."""

import json
import shutil
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from longcat.model.flavour import ALL_FILES, COMPONENTS
from longcat.model.published.models import HUB_IDS

_WITH_WEIGHTS = ("text_encoder", "transformer", "vae")


class WeightsState(StrEnum):
    """Location of a flavour's weights."""

    CACHED = "cached"
    FETCHABLE = "fetchable"
    """The hub has them, and the disk has room for them."""
    OFFLINE = "offline"
    """HF_HUB_OFFLINE is set."""
    UNREACHABLE = "unreachable"
    """The hub does not answer, or denies access."""
    DISK_TOO_SMALL = "disk too small"


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Result of looking for weights."""

    state: WeightsState
    missing_bytes: int = 0
    """Bytes to be downloaded, where the hub gives sizes."""
    free_bytes: int = 0
    """Free bytes of the disk that downloads go to."""


def find_weights(flavour: str, revision: str | None = None) -> Weights:
    """Look for the weights of ``final`` or ``dev``, first in the cache, then at the hub. Downloads nothing."""
    import httpx  # here, as the hub's library, because most commands look for no weights
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import DryRunError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if _is_cached(HUB_IDS[flavour], revision):
        return Weights(state=WeightsState.CACHED)
    if constants.HF_HUB_OFFLINE:
        return Weights(state=WeightsState.OFFLINE)
    try:
        files = snapshot_download(HUB_IDS[flavour], revision=revision, allow_patterns=ALL_FILES, dry_run=True)
    except (DryRunError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, httpx.HTTPError, OSError):
        return Weights(state=WeightsState.UNREACHABLE)
    missing = sum(file.file_size or 0 for file in files if file.will_download)
    free = _free_bytes(Path(constants.HF_HUB_CACHE))
    state = WeightsState.FETCHABLE if missing < free else WeightsState.DISK_TOO_SMALL
    return Weights(state=state, missing_bytes=missing, free_bytes=free)


def is_complete(folder: Path) -> bool:
    """Return True if every component is there, with every file of its weights: a download may have been interrupted."""
    if not all((folder / part).is_dir() for part in COMPONENTS):
        return False
    return all(_has_weights(folder / part) for part in _WITH_WEIGHTS)


def _is_cached(hub_id: str, revision: str | None) -> bool:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(hub_id, revision=revision, allow_patterns=ALL_FILES, local_files_only=True)
    except (HFValidationError, LocalEntryNotFoundError, OSError):
        return False
    return is_complete(Path(folder))


def _has_weights(component: Path) -> bool:
    if indices := sorted(component.glob("*.safetensors.index.json")):
        names = {name for index in indices for name in json.loads(index.read_bytes())["weight_map"].values()}
        return all((component / name).exists() for name in names)
    return any(path.exists() for path in component.glob("*.safetensors"))


def _free_bytes(folder: Path) -> int:
    """Return the free bytes of the disk where the folder is, or will be created."""
    return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
