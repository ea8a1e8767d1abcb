"""LoRA files of other programs, published to adapter storage."""

from dataclasses import dataclass
from pathlib import Path

from longcat.adapter.artifact import latest_version
from longcat.adapter.foreign.reading import flavour_targets, read_foreign
from longcat.adapter.manifest import Manifest
from longcat.adapter.publishing import set_latest
from longcat.adapter.reference import parse_new_name
from longcat.adapter.weights.draft import draft_of, publish_lora
from longcat.errors import AdapterError, StorageMissingError
from longcat.model.flavour import Flavour
from longcat.problem import Problem
from longcat.storage.interface import Storage


@dataclass(frozen=True, kw_only=True)
class ImportedAdapter:
    """A version made from another program's file."""

    manifest: Manifest
    has_alpha: bool
    """True if the file gives alpha. If not, alpha is the rank, as in the programs that write such files."""
    warnings: tuple[Problem, ...]
    """Assumptions about the file, because of which the adapter may not have the expected effect."""


def import_adapter(
    storage: Storage,
    name: str,
    path: Path,
    base: Flavour,
    *,
    max_rank: int,
    trigger_words: tuple[str, ...] = (),
    replace: bool = True,
    moves_latest: bool = True,
) -> ImportedAdapter:
    """Publish a file, or a directory with one, as a new version of ``name``, and make it the latest.

    ``trigger_words``: those of the manifest; without any, those in the file. ``replace``: allow a name that already has a
    latest version; ``moves_latest``: make the new version the latest.
    Raises ``AdapterError`` if the file cannot be read or does not fit, or if the name is taken and ``replace`` is not set.
    """
    parse_new_name(name, base=base.name)
    if not replace and _has_latest(storage, name):
        raise AdapterError(
            "adapter_exists",
            "already in {storage}",
            remedy="give another name, or allow a new version of this one",
            field="name",
            value=name,
            storage=storage.uri,
        )
    foreign = read_foreign(path, flavour_targets(base), max_rank=max_rank)
    usage = foreign.usage
    draft = draft_of(
        foreign.weights, base, origin=foreign.origin, sampling=usage.sampling,
        trigger_words=trigger_words or usage.trigger_words,
    )  # fmt: skip
    manifest = publish_lora(storage, name, draft, foreign.weights)
    if moves_latest:
        set_latest(storage, name, manifest.version, only_forward=True)
    return ImportedAdapter(manifest=manifest, has_alpha=foreign.has_alpha, warnings=foreign.warnings)


def _has_latest(storage: Storage, name: str) -> bool:
    try:
        latest_version(storage, name)
    except StorageMissingError:
        return False
    return True
