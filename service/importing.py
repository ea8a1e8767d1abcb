"""LoRA files of other programs, published to adapter storage. For the engine process: it takes torch to read them."""

import tempfile
from pathlib import Path

from longcat import adapter
from longcat.errors import AdapterError, StorageMissingError
from longcat.flavour import Flavour
from longcat.foreign import flavour_targets, read_foreign
from longcat.lora import save_lora
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
    weights = foreign.weights
    draft = adapter.Draft(
        base=adapter.BaseIdentity(flavour=base.name, revision=base.revision, hash=base.hash),
        rank=weights.rank,
        alpha=weights.alpha,
        target_modules=tuple(sorted(weights.layers)),
        tensors=2 * len(weights.layers),
        origin=foreign.origin,
    )
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "adapter.safetensors")
        save_lora(weights, file)
        manifest = adapter.publish(storage, name, draft, file)
    adapter.set_latest(storage, name, manifest.version, only_forward=True)
    return manifest


def _is_there(storage: Storage, name: str) -> bool:
    try:
        adapter.latest_version(storage, name)
    except StorageMissingError:
        return False
    return True
