"""The adapter artifact: what training writes and serving reads, and the only thing that couples them. No torch.

``<name>/<version>/adapter.safetensors`` and, written last, ``<name>/<version>/manifest.json``; ``<name>/latest`` names a
version. Versions are numbered from 1 and never change. A reader that sees a manifest sees a whole adapter; one that does
not sees nothing. ``latest`` is moved by compare-and-swap. What was removed leaves ``<name>/<version>/removed``, so that its
number never means anything else.
"""

import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from longcat.errors import AdapterError, StorageConflictError, StorageMissingError, UnknownAdapterError
from longcat.prompt import POSITION_POLICY
from longcat.storage import Storage

_NAME = re.compile(r"^[a-z0-9][a-z0-9._-]{0,62}$")
_REFERENCE = re.compile(r"^(?P<name>[^@]*)(?:@(?P<version>[1-9][0-9]{0,8}))?$")
_MANIFEST = re.compile(r"^(?P<name>[^/]+)/(?P<version>[1-9][0-9]*)/manifest\.json$")
_ATTEMPTS = 20

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BaseIdentity(_Part):
    """The model that an adapter belongs to: on another one its numbers mean nothing."""

    flavour: str
    revision: str | None
    hash: Sha256


class WeightsIdentity(_Part):
    """``adapter.safetensors`` as it must arrive."""

    sha256: Sha256
    size_bytes: Annotated[int, Field(gt=0)]


class Training(_Part):
    """How an adapter came about; imported ones have none."""

    precision: str
    """Of the base while training."""
    config: dict[str, Any]
    config_hash: Sha256
    dataset_hash: Sha256
    steps: Annotated[int, Field(ge=1)]
    losses: tuple[float, ...]
    """Of the last steps, averaged over logging intervals, oldest first."""
    code_version: str


class Draft(_Part):
    """What a publisher says of an adapter; the rest of the manifest follows from the file and from storage."""

    base: BaseIdentity
    rank: Annotated[int, Field(ge=1)]
    """The largest of any module."""
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """The update is scaled by alpha / rank."""
    use_dora: bool = False
    """Whether the layers have magnitudes too (``longcat.dora``)."""
    target_modules: tuple[str, ...]
    tensors: Annotated[int, Field(ge=2)]
    trigger_words: tuple[str, ...] = ()
    origin: str
    """``trained``, or the format that it was imported from."""
    training: Training | None = None
    validation_images: tuple[str, ...] = ()
    """Keys beside the manifest."""
    position_policy: str = POSITION_POLICY


class Manifest(Draft):
    """Everything about one version. Its being there means that the version is whole."""

    format: Literal[1] = 1
    name: str
    version: Annotated[int, Field(ge=1)]
    created: AwareDatetime
    weights: WeightsIdentity

    @property
    def reference(self) -> str:
        """``name@version``."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, kw_only=True)
class Reference:
    """An adapter as a request names it; without a version it means the latest."""

    name: str
    version: int | None


def parse_reference(text: str) -> Reference:
    """``ink`` or ``ink@3``. Raises ``AdapterError``."""
    match = _REFERENCE.match(text)
    if match is None or not _NAME.match(match["name"]):
        raise AdapterError(
            f"adapter {text!r}: give a name of lower-case letters, digits, '.', '_' and '-', with or without a version: "
            "ink, or ink@3"
        )
    return Reference(name=match["name"], version=int(match["version"]) if match["version"] else None)


def publish(
    storage: Storage, name: str, draft: Draft, weights: Path, *, extras: dict[str, Path] | None = None
) -> Manifest:
    """Store a new version and return its manifest; ``latest`` stays where it is.

    The number is claimed by creating the weights under it: of two publishers at once, the second takes the next number. A
    publisher that dies leaves weights without a manifest, which nobody sees. ``extras`` are stored beside the manifest.
    """
    if parse_reference(name).version is not None:
        raise AdapterError(f"adapter {name!r}: versions are numbered by storage; give the name alone")
    identity = WeightsIdentity(sha256=_sha256(weights), size_bytes=weights.stat().st_size)
    for _ in range(_ATTEMPTS):
        version = max(_claimed(storage, name), default=0) + 1
        folder = f"{name}/{version}"
        try:
            storage.create(f"{folder}/adapter.safetensors", weights)
        except StorageConflictError:
            continue
        for key, path in (extras or {}).items():
            storage.create(f"{folder}/{key}", path)
        manifest = Manifest(**dict(draft), name=name, version=version, created=datetime.now(UTC), weights=identity)
        storage.create(f"{folder}/manifest.json", manifest.model_dump_json(indent=1).encode())
        return manifest
    raise AdapterError(f"adapter {name!r}: {_ATTEMPTS} version numbers in a row were taken by others; publish again")


def set_latest(storage: Storage, name: str, version: int, *, only_forward: bool = False) -> None:
    """Let ``name`` mean this version; with ``only_forward``, unless it means a later one: publishers finish in any order."""
    read_manifest(storage, name, version)  # never point at what is not whole
    content = f"{version}\n".encode()
    for _ in range(_ATTEMPTS):
        try:
            current = storage.read(f"{name}/latest")
        except StorageMissingError:
            current = None
        if current is not None and only_forward and _number(name, current.content) >= version:
            return
        try:
            if current is None:
                storage.create(f"{name}/latest", content)
            else:
                storage.replace(f"{name}/latest", content, etag=current.etag)
        except StorageConflictError:
            continue
        return
    raise AdapterError(f"adapter {name!r}: latest kept changing while it was being moved; try again")


def latest_version(storage: Storage, name: str) -> int:
    """The version that the name means now. Raises ``StorageMissingError`` if nothing has been made the latest."""
    return _number(name, storage.read(f"{name}/latest").content)


def read_manifest(storage: Storage, name: str, version: int) -> Manifest:
    """One version's manifest. Raises ``StorageMissingError``, or ``AdapterError`` if it cannot be understood."""
    try:
        manifest = Manifest.model_validate_json(storage.read(f"{name}/{version}/manifest.json").content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise AdapterError(f"adapter {name}@{version}: its manifest is broken at {where}: {first['msg']}") from error
    if (manifest.name, manifest.version) != (name, version):
        raise AdapterError(f"adapter {name}@{version}: its manifest says {manifest.reference}; it was copied by hand")
    return manifest


def find(storage: Storage, reference: Reference) -> Manifest:
    """The manifest of what a reference means now. Raises ``AdapterError`` if it means nothing."""
    try:
        version = reference.version or latest_version(storage, reference.name)
        return read_manifest(storage, reference.name, version)
    except StorageMissingError as error:
        wanted = "no latest version" if reference.version is None else f"no version {reference.version}"
        there = ", ".join(str(version) for version in sorted(_whole(storage, reference.name))) or "none at all"
        raise UnknownAdapterError(
            f"adapter {reference.name!r} has {wanted} at {storage.uri}; it has {there}"
        ) from error


def previous_version(storage: Storage, name: str) -> int:
    """The version to roll back to: the one before the latest. Raises ``AdapterError`` if there is none."""
    latest = latest_version(storage, name)
    earlier = [version for version in _whole(storage, name) if version < latest]
    if not earlier:
        raise AdapterError(
            f"adapter {name!r}: nothing is there before {latest}, its latest; say which version to move to"
        )
    return max(earlier)


def list_versions(storage: Storage, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Name and version of everything that is whole, in no particular order."""
    for entry in storage.list(prefix):
        if match := _MANIFEST.match(entry.key):
            yield match["name"], int(match["version"])


def remove_version(storage: Storage, name: str, version: int) -> None:
    """Remove a version, manifest first, so that nobody sees half of it.

    Raises ``AdapterError`` if it is not there, or if it is the latest: whoever asks for the name would find nothing.
    """
    with contextlib.suppress(StorageMissingError):
        if latest_version(storage, name) == version:
            raise AdapterError(
                f"adapter {name}@{version} is the latest of its name: roll back or publish first, or remove all of {name}"
            )
    _remove(storage, f"{name}/{version}/", keep=version)


def remove_adapter(storage: Storage, name: str) -> None:
    """Remove all versions of an adapter: first ``latest``, then the manifests. Raises ``AdapterError`` if there is none."""
    _remove(storage, f"{name}/", keep=max(_claimed(storage, name), default=1))


def fetched_file(manifest: Manifest, folder: Path) -> Path:
    """Where ``fetch`` puts a version's weights."""
    return folder / f"{manifest.weights.sha256}.safetensors"


def fetch(storage: Storage, manifest: Manifest, folder: Path) -> Path:
    """Download a version's weights, check every byte, and return the file: ``folder/<sha256>.safetensors``.

    The file appears whole or not at all; one that is there already is not downloaded again.
    """
    target = fetched_file(manifest, folder)
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as scratch:
        partial = Path(scratch, "adapter.safetensors")
        storage.download(f"{manifest.name}/{manifest.version}/adapter.safetensors", partial)
        size, digest = partial.stat().st_size, _sha256(partial)
        if (size, digest) != (manifest.weights.size_bytes, manifest.weights.sha256):
            raise AdapterError(
                f"adapter {manifest.reference}: its weights are damaged ({size} bytes with SHA-256 {digest[:12]}, where the "
                f"manifest says {manifest.weights.size_bytes} with {manifest.weights.sha256[:12]}); publish it again"
            )
        os.replace(partial, target)
    return target


def _remove(storage: Storage, prefix: str, *, keep: int) -> None:
    """Delete what is under the prefix, in an order that shows readers whole adapters only; leave the number's mark."""
    name = prefix.split("/")[0]
    keys = {entry.key for entry in storage.list(prefix)}
    if all(key.endswith("/removed") for key in keys):
        raise UnknownAdapterError(
            f"adapter {prefix.rstrip('/').replace('/', '@')}: nothing of that name is at {storage.uri}"
        )
    mark = f"{name}/{keep}/removed"
    with contextlib.suppress(StorageConflictError):
        storage.create(mark, b"\n")  # before anything goes: the number is never free
    first = [f"{name}/latest", *(key for key in keys if _MANIFEST.match(key))]
    for key in (*first, *keys.difference(first, [mark])):
        if key in keys:
            storage.delete(key)


def _whole(storage: Storage, name: str) -> Iterator[int]:
    return (version for _, version in list_versions(storage, f"{name}/"))


def _claimed(storage: Storage, name: str) -> Iterator[int]:
    for entry in storage.list(f"{name}/"):
        number = entry.key.split("/")[1]
        if number.isdecimal():
            yield int(number)


def _number(name: str, content: bytes) -> int:
    try:
        return int(content)
    except ValueError as error:
        raise AdapterError(
            f"adapter {name!r}: its latest says {content[:20]!r} and should be a version number"
        ) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
