"""Publishing of adapter artifacts: new versions, the latest one, and removal. No torch.

The order of writes gives readers complete versions only; ``longcat.adapter.artifact`` describes the keys.
"""

import contextlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from longcat.adapter.artifact import latest_version, number_in, parse_manifest_key, read_manifest
from longcat.adapter.manifest import Draft, Manifest, WeightsIdentity
from longcat.adapter.reference import VERSION, parse_name, parse_new_name
from longcat.checksum import file_sha256
from longcat.errors import AdapterError, StorageConflictError, StorageError, StorageMissingError, UnknownAdapterError
from longcat.storage.interface import Storage

_NUMBER = re.compile(VERSION)
_ATTEMPTS = 20


def publish(
    storage: Storage, name: str, draft: Draft, weights: Path, *, extras: dict[str, Path] | None = None
) -> Manifest:
    """Store a new version and return its manifest, without moving ``latest``.

    Creating the weights claims a number: of two publishers at once, the second takes the next number. A publisher that dies
    leaves weights without a manifest, which no reader sees. ``extras`` are stored beside the manifest, by their keys.
    """
    parse_new_name(name, base=draft.base.flavour)
    identity = WeightsIdentity(sha256=file_sha256(weights), size_bytes=weights.stat().st_size)
    for _ in range(_ATTEMPTS):
        version = max(_claimed(storage, name), default=0) + 1
        folder = f"{name}/{version}"
        try:
            storage.create(f"{folder}/adapter.safetensors", weights)
        except StorageConflictError:
            continue
        with _removed_on_failure(storage, [f"{folder}/manifest.json", f"{folder}/adapter.safetensors"]) as keys:
            for key, path in (extras or {}).items():
                storage.create(f"{folder}/{key}", path)
                keys.append(f"{folder}/{key}")
            manifest = Manifest(**dict(draft), name=name, version=version, created=datetime.now(UTC), weights=identity)
            storage.create(f"{folder}/manifest.json", manifest.model_dump_json(indent=1).encode())
        return manifest
    raise AdapterError(
        "adapter_numbers_taken",
        "other publishers took {attempts} version numbers in a row",
        remedy="publish it again",
        field="adapter",
        value=name,
        attempts=_ATTEMPTS,
    )


def set_latest(storage: Storage, name: str, version: int, *, only_forward: bool = False) -> None:
    """Make a version the latest. With ``only_forward``, keep a later one: publishers finish in any order."""
    read_manifest(storage, name, version)  # an incomplete version must not become the latest
    content = f"{version}\n".encode()
    for _ in range(_ATTEMPTS):
        try:
            current = storage.read(f"{name}/latest")
        except StorageMissingError:
            current = None
        if current is not None and only_forward and number_in(name, current) >= version:
            return
        try:
            if current is None:
                storage.create(f"{name}/latest", content)
            else:
                storage.replace(f"{name}/latest", content, etag=current.etag)
        except StorageConflictError:
            continue
        return
    raise AdapterError(
        "adapter_latest_contended",
        "other writers kept changing its latest version",
        remedy="try again",
        field="adapter",
        value=name,
    )


def remove_version(storage: Storage, name: str, version: int) -> None:
    """Remove a version, manifest first, so that no reader sees half of it.

    Raises ``AdapterError`` if it does not exist, or if it is the latest, without which the name would mean nothing.
    """
    with contextlib.suppress(StorageMissingError):
        if latest_version(storage, name) == version:
            raise AdapterError(
                "adapter_version_is_latest",
                "is the latest version of its name",
                remedy="roll back or publish another version first, or remove all of {name}",
                field="adapter",
                value=f"{name}@{version}",
                name=name,
            )
    _remove(storage, f"{name}/{version}/", keep=version)


def remove_adapter(storage: Storage, name: str) -> None:
    """Remove all versions of an adapter: first ``latest``, then the manifests. Raises ``AdapterError``."""
    parse_name(name)
    _remove(storage, f"{name}/", keep=max(_claimed(storage, name), default=1))


@contextlib.contextmanager
def _removed_on_failure(storage: Storage, keys: list[str]) -> Iterator[list[str]]:
    """Delete keys, and those that are appended, if a version cannot be completed and storage can still be reached."""
    try:
        yield keys
    except BaseException:  # also an interruption, which is raised again: half a version would stay
        with contextlib.suppress(StorageError):
            for key in keys:
                storage.delete(key)
        raise


def _remove(storage: Storage, prefix: str, *, keep: int) -> None:
    """Delete the keys under a prefix so that readers see complete versions only, and mark number ``keep`` as used."""
    name = prefix.split("/")[0]
    keys = {entry.key for entry in storage.list(prefix)}
    if all(key.endswith("/removed") for key in keys):
        raise UnknownAdapterError(
            "adapter_not_in_storage",
            "not in {storage}",
            remedy="check name and version",
            field="adapter",
            value=prefix.rstrip("/").replace("/", "@"),
            storage=storage.uri,
        )
    mark = f"{name}/{keep}/removed"
    with contextlib.suppress(StorageConflictError):
        storage.create(mark, b"\n")  # before anything is deleted, so that the number is never free
    first = [f"{name}/latest", *(key for key in keys if parse_manifest_key(key))]
    for key in (*first, *keys.difference(first, [mark])):
        if key in keys:
            storage.delete(key)


def _claimed(storage: Storage, name: str) -> Iterator[int]:
    for entry in storage.list(f"{name}/"):
        number = entry.key.split("/")[1]
        if _NUMBER.fullmatch(number):
            yield int(number)
