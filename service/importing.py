"""LoRA files of other programs, published to adapter storage. For the engine process: it takes torch to read them."""

from pathlib import Path

from longcat import adapter
from longcat.errors import AdapterError, StorageMissingError
from longcat.flavour import Flavour
from longcat.foreign import flavour_targets, read_foreign
from longcat.lora import draft_of, publish_lora
from longcat.storage import Storage


def import_adapter(
    storage: Storage, name: str, path: Path, base: Flavour, *, max_rank: int, replace: bool
) -> adapter.Manifest:
    """Publish a file, or a directory with one, as the latest version of ``name``.

    Raises ``AdapterError`` if it cannot be read or does not fit, or if the name is there and ``replace`` is not set.
    """
    if not replace and _is_there(storage, name):
        raise AdapterError(f"adapter {name!r} is at {storage.uri} already")
    foreign = read_foreign(path, flavour_targets(base), max_rank=max_rank)
    draft = draft_of(foreign.weights, base, origin=foreign.origin)
    manifest = publish_lora(storage, name, draft, foreign.weights)
    adapter.set_latest(storage, name, manifest.version, only_forward=True)
    return manifest


def _is_there(storage: Storage, name: str) -> bool:
    try:
        adapter.latest_version(storage, name)
    except StorageMissingError:
        return False
    return True
