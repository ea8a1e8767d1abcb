"""The adapters in storage: their names, versions and origins."""

from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from longcat.adapter import artifact as adapter
from longcat.adapter.artifact import fetch
from longcat.adapter.manifest import Manifest
from longcat.adapter.publishing import remove_adapter, remove_version, set_latest
from longcat.adapter.reference import Reference, parse_reference
from longcat.errors import AdapterError, StorageError, StorageMissingError, UnknownAdapterError
from longcat.problem import Problem
from longcat.storage.atomic import write_atomically
from longcat.storage.opening import open_storage
from studio.web.errors import PictureNotFoundError
from studio.web.validation_scene import scene_of

_PNG = b"\x89PNG\r\n\x1a\n"
"""The first bytes of every PNG."""


@dataclass(frozen=True, kw_only=True)
class CatalogueEntry:
    """One adapter: its latest version, and all versions."""

    name: str
    latest: int | None
    """None if no version is the latest."""
    versions: tuple[Manifest, ...]
    """Readable versions, newest first."""
    broken: Mapping[int, Problem]
    """Versions whose manifest cannot be read, and why."""
    latest_problem: Problem | None = None
    """The problem that keeps the latest version from being known."""

    @property
    def shown(self) -> Manifest | None:
        """Return the version that represents the adapter: the latest, else the newest."""
        chosen = [manifest for manifest in self.versions if manifest.version == self.latest]
        return next(iter(chosen or self.versions), None)

    def before(self, version: int) -> int | None:
        """Return the version to roll back to."""
        return next((manifest.version for manifest in self.versions if manifest.version < version), None)


@dataclass(frozen=True, kw_only=True)
class ValidationImage:
    """A validation picture."""

    key: str
    prompt: str
    """Empty if the file does not say."""


class AdapterCatalogue:
    """Adapter storage, with a cache of what was read: a version never changes."""

    def __init__(self, uri: str, *, endpoint_url: str | None, cache: Path) -> None:
        self._storage = open_storage(uri, endpoint_url=endpoint_url)
        self._cache = cache

    @property
    def uri(self) -> str:
        """Return the URI of the storage."""
        return self._storage.uri

    def all(self) -> list[CatalogueEntry]:
        """Return every adapter, by name. Raises ``StorageError`` if storage cannot be reached."""
        versions = defaultdict(list)
        for name, version in adapter.list_versions(self._storage):
            versions[name].append(version)
        return [self._entry(name, versions[name]) for name in sorted(versions)]

    def get(self, name: str) -> CatalogueEntry:
        """Return one adapter. Raises ``UnknownAdapterError`` if there is none."""
        _check(name)
        if not (versions := [version for _, version in adapter.list_versions(self._storage, name)]):
            raise _unknown(name)
        return self._entry(name, versions)

    def manifest(self, name: str, version: int) -> Manifest:
        """Return the manifest of one version. Raises ``AdapterError``."""
        _check(name)
        return adapter.find(self._storage, Reference(name=name, version=version))

    def weights(self, manifest: Manifest) -> Path:
        """Return the path of its weights, after checking their hash."""
        return fetch(self._storage, manifest, self._cache / "weights")

    def validation_images(self, manifest: Manifest) -> list[ValidationImage]:
        """Return the validation pictures of a version, with their prompts. Missing ones are left out."""
        images = []
        for key in manifest.validation_images:
            with suppress(PictureNotFoundError):
                images.append(self.described(manifest, key))
        return images

    def described(self, manifest: Manifest, key: str) -> ValidationImage:
        """Return one validation picture with its prompt. Raises ``PictureNotFoundError`` if there is none."""
        scene = scene_of(self.validation_image(manifest, key))
        return ValidationImage(key=key, prompt=str(scene.get("prompt", "")))

    def validation_image(self, manifest: Manifest, key: str) -> Path:
        """Return one validation picture. Raises ``PictureNotFoundError`` if the manifest has no such key.

        The key is the publisher's, and its file can be a link: nothing but a PNG is shown.
        """
        if key not in manifest.validation_images:
            raise PictureNotFoundError
        path = self._cache / "proofs" / manifest.weights.sha256 / f"{manifest.version}-{Path(key).name}"
        if not path.exists():
            try:
                content = self._storage.read(f"{manifest.name}/{manifest.version}/{key}").content
            except StorageMissingError as error:
                raise PictureNotFoundError from error
            if not content.startswith(_PNG):
                raise PictureNotFoundError
            write_atomically(path, content, durable=False)
        return path

    def make_latest(self, name: str, version: int) -> None:
        """Make this version the latest."""
        self.manifest(name, version)
        set_latest(self._storage, name, version)

    def remove(self, name: str, version: int | None) -> None:
        """Delete one version, or all, permanently."""
        _check(name)
        if version is None:
            remove_adapter(self._storage, name)
        else:
            remove_version(self._storage, name, version)

    def _entry(self, name: str, numbers: list[int]) -> CatalogueEntry:
        latest, latest_problem = None, None
        try:
            latest = adapter.latest_version(self._storage, name)
        except StorageMissingError:
            pass
        except (AdapterError, StorageError) as error:
            latest_problem = error.problems[0]
        versions, broken = [], {}
        for number in sorted(numbers, reverse=True):
            try:
                versions.append(adapter.read_manifest(self._storage, name, number))
            except (AdapterError, StorageError) as error:  # only this version's error: the listing has just been read
                broken[number] = error.problems[0]
        return CatalogueEntry(
            name=name, latest=latest, versions=tuple(versions), broken=broken, latest_problem=latest_problem
        )


def _check(name: str) -> None:
    """Raise ``UnknownAdapterError`` unless an adapter could have that name."""
    try:
        is_name = parse_reference(name).version is None
    except AdapterError:
        is_name = False
    if not is_name:
        raise _unknown(name)


def _unknown(name: str) -> UnknownAdapterError:
    return UnknownAdapterError("adapter_not_in_catalogue", "no such adapter", field="adapter", value=name)
