"""The adapter artifact, which training writes and serving reads: the only coupling between the two. No torch.

A version is ``<name>/<version>/adapter.safetensors`` and, written last, ``<name>/<version>/manifest.json``: it exists once
its manifest does. Versions are numbered from 1 and never change. ``<name>/latest`` names one, and is moved by
compare-and-swap. A removed version leaves ``<name>/<version>/removed``, so that its number is never used again.

Any of these can be a link to a file that is no part of an adapter, and errors reach clients and logs: they show nothing of
the content of a file that is not what it should be.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from longcat.adapter.manifest import Manifest, WeightsIdentity
from longcat.adapter.reference import NAME, VERSION, Reference
from longcat.checksum import file_sha256
from longcat.errors import AdapterError, StorageMissingError, UnknownAdapterError
from longcat.problem import Problem, show
from longcat.storage.interface import Blob, Storage
from longcat.validation import UNKNOWN_FIELD_CODES, problems_of

_MANIFEST = re.compile(rf"{NAME}/{VERSION}/manifest\.json")
_LATEST = re.compile(rf"\s*{VERSION}\s*", re.ASCII)
_MAX_MANIFEST_BYTES = 2**20
"""A manifest has a few KB, mostly names of modules and the configuration of the training."""
_MAX_LATEST_BYTES = 20


def latest_version(storage: Storage, name: str) -> int:
    """Return the latest version. Raises ``StorageMissingError`` if the name has none."""
    return number_in(name, read_latest(storage, name))


def read_latest(storage: Storage, name: str) -> Blob:
    """Read which version is the latest. Raises ``StorageMissingError`` if the name has none."""
    return storage.read(f"{name}/latest", max_bytes=_MAX_MANIFEST_BYTES)


def number_in(name: str, latest: Blob) -> int:
    """Return the version that ``latest`` names. Raises ``AdapterError`` if it names none."""
    content = latest.content
    if len(content) <= _MAX_LATEST_BYTES and (match := _LATEST.fullmatch(content.decode(errors="replace"))):
        return int(match["version"])
    raise AdapterError(
        "adapter_latest_invalid",
        "the content of its latest file is not the number of a version",
        remedy="roll back to a version",
        field="adapter",
        value=name,
    )


def read_manifest(storage: Storage, name: str, version: int) -> Manifest:
    """Read a version's manifest. Raises ``StorageMissingError``, or ``AdapterError`` if it is invalid."""
    return manifest_in(read_manifest_file(storage, name, version), name, version)


def read_manifest_file(storage: Storage, name: str, version: int) -> Blob:
    """Read a version's manifest as it is stored. Raises ``StorageMissingError``."""
    return storage.read(f"{name}/{version}/manifest.json", max_bytes=_MAX_MANIFEST_BYTES)


def manifest_in(stored: Blob, name: str, version: int) -> Manifest:
    """Return the manifest that is stored for a version. Raises ``AdapterError`` if it is invalid."""
    reference = f"{name}@{version}"
    try:
        manifest = Manifest.model_validate_json(stored.content)
    except ValidationError as error:
        raise AdapterError(
            "adapter_manifest_invalid",
            "its manifest is invalid: {cause}",
            remedy="publish it again",
            field="adapter",
            value=reference,
            cause=_cause(error),
        ) from error
    if manifest.reference != reference:
        raise AdapterError(
            "adapter_manifest_of_another",
            "its manifest is that of {other}",
            remedy="publish it again instead of copying files",
            field="adapter",
            value=reference,
            other=show(manifest.reference),
        )
    return manifest


def _cause(error: ValidationError) -> Problem:
    """Return the first problem of a manifest's own fields, or else of an unknown one, without the value."""
    problems = [replace(problem, value=None) for problem in problems_of(error, Manifest)]
    return next((problem for problem in problems if problem.code not in UNKNOWN_FIELD_CODES), problems[0])


def find(storage: Storage, reference: Reference) -> Manifest:
    """Read the manifest that a reference means now. Raises ``UnknownAdapterError``, or ``AdapterError`` if it is invalid."""
    try:
        version = reference.version or latest_version(storage, reference.name)
        return read_manifest(storage, reference.name, version)
    except StorageMissingError as error:
        raise missing_adapter(storage, reference) from error


def missing_adapter(storage: Storage, reference: Reference) -> UnknownAdapterError:
    """Return the error of a reference to a missing version, with the existing versions. Raises ``StorageError``."""
    versions = ", ".join(str(version) for version in sorted(_versions(storage, reference.name)))
    if not versions:
        return UnknownAdapterError(
            "adapter_without_versions",
            "has no version in {storage}",
            remedy="check the name",
            field="adapter",
            value=reference.name,
            storage=storage.uri,
        )
    if reference.version is None:
        return UnknownAdapterError(
            "adapter_without_latest",
            "has no latest version in {storage}",
            remedy="name one of its versions: {versions}",
            field="adapter",
            value=reference.name,
            storage=storage.uri,
            versions=versions,
        )
    return UnknownAdapterError(
        "adapter_version_missing",
        "has no version {version} in {storage}",
        remedy="name one of its versions: {versions}",
        field="adapter",
        value=reference.name,
        version=reference.version,
        storage=storage.uri,
        versions=versions,
    )


def previous_version(storage: Storage, name: str) -> int:
    """Return the version before the latest, to roll back to. Raises ``AdapterError`` if there is none."""
    try:
        latest = latest_version(storage, name)
    except StorageMissingError as error:
        raise missing_adapter(storage, Reference(name=name, version=None)) from error
    earlier = [version for version in _versions(storage, name) if version < latest]
    if not earlier:
        raise AdapterError(
            "adapter_no_earlier_version",
            "has no version before {latest}, its latest",
            remedy="name the version to make the latest",
            field="adapter",
            value=name,
            latest=latest,
        )
    return max(earlier)


def list_versions(storage: Storage, name: str = "*") -> Iterator[tuple[str, int]]:
    """Yield name and version of every complete version, of one name or of all, in no particular order."""
    for entry in storage.find(f"{name}/*/manifest.json"):
        if version := parse_manifest_key(entry.key):
            yield version


def parse_manifest_key(key: str) -> tuple[str, int] | None:
    """Return name and version of a manifest's key; None for the key of anything else."""
    match = _MANIFEST.fullmatch(key)
    return (match["name"], int(match["version"])) if match else None


def fetched_file(manifest: Manifest, folder: Path) -> Path:
    """Return the path at which ``fetch`` stores a version's weights."""
    return folder / f"{manifest.weights.sha256}.safetensors"


def fetch(storage: Storage, manifest: Manifest, folder: Path) -> Path:
    """Download a version's weights, verify them, and return the file: ``folder/<sha256>.safetensors``.

    The file appears whole or not at all. An existing file is downloaded again only if its content is not the version's.
    Raises ``AdapterError`` if the weights are damaged.
    """
    target = fetched_file(manifest, folder)
    if _identity(target) == manifest.weights:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as scratch:
        partial = Path(scratch, "adapter.safetensors")
        key = f"{manifest.name}/{manifest.version}/adapter.safetensors"
        storage.download(key, partial, max_bytes=manifest.weights.size_bytes)
        stored = _identity(partial)
        if stored != manifest.weights:
            raise AdapterError(
                "adapter_weights_damaged",
                "its weights are damaged: {size} of {expected_size} bytes, or not those of SHA-256 {expected_digest}",
                remedy="publish it again",
                field="adapter",
                value=manifest.reference,
                size=stored.size_bytes if stored else 0,
                expected_size=manifest.weights.size_bytes,
                expected_digest=manifest.weights.sha256[:12],
            )
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(partial, target)
    return target


def _identity(path: Path) -> WeightsIdentity | None:
    """Return checksum and size of a file; None if it is missing, empty or no regular file."""
    try:
        if not path.is_file() or not (size := path.stat().st_size):
            return None
        return WeightsIdentity(sha256=file_sha256(path), size_bytes=size)
    except FileNotFoundError:  # another process has just removed it, to make room
        return None


def _versions(storage: Storage, name: str) -> Iterator[int]:
    return (version for _, version in list_versions(storage, name))
