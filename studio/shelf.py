"""The adapters in storage: names, versions, and how each came about."""

import io
import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from longcat import adapter
from longcat.adapter import Manifest, Reference
from longcat.errors import AdapterError, StorageMissingError
from longcat.storage import open_storage
from studio.page_error import PageError
from trainer.atomic import write_atomically

_SAYS_PROMPT = "lithograph-validation"
"""Where the trainer's pictures say what they show."""


@dataclass(frozen=True, kw_only=True)
class Shelved:
    """One adapter: what its name means, and every version."""

    name: str
    latest: int | None
    """None if nothing was made the latest."""
    versions: tuple[Manifest, ...]
    """That can be read, newest first."""
    broken: Mapping[int, str]
    """Versions whose manifest cannot be read, and why."""

    @property
    def shown(self) -> Manifest | None:
        """The version that stands for all: the latest, else the newest."""
        chosen = [manifest for manifest in self.versions if manifest.version == self.latest]
        return next(iter(chosen or self.versions), None)

    def before(self, version: int) -> int | None:
        """The version to roll back to."""
        return next((manifest.version for manifest in self.versions if manifest.version < version), None)


@dataclass(frozen=True, kw_only=True)
class Proof:
    """A validation picture."""

    key: str
    prompt: str
    """Empty if the file does not say."""


class Shelf:
    """Adapter storage, with copies of what was looked at: a version never changes."""

    def __init__(self, uri: str, *, endpoint_url: str | None, cache: Path) -> None:
        self._storage = open_storage(uri, endpoint_url=endpoint_url)
        self._cache = cache

    @property
    def uri(self) -> str:
        """Where it is."""
        return self._storage.uri

    def all(self) -> list[Shelved]:
        """Every adapter, by name. Raises ``StorageError`` if storage cannot be reached."""
        versions = defaultdict(list)
        for name, version in adapter.list_versions(self._storage):
            versions[name].append(version)
        return [self._shelved(name, versions[name]) for name in sorted(versions)]

    def get(self, name: str) -> Shelved:
        """One adapter. Raises ``PageError`` if there is none."""
        _check(name)
        if not (versions := [version for _, version in adapter.list_versions(self._storage, f"{name}/")]):
            raise PageError("error.no_adapter", status=404, value=name)
        return self._shelved(name, versions)

    def manifest(self, name: str, version: int) -> Manifest:
        """One version. Raises ``AdapterError``."""
        _check(name)
        return adapter.find(self._storage, Reference(name=name, version=version))

    def weights(self, manifest: Manifest) -> Path:
        """Its file, every byte checked."""
        return adapter.fetch(self._storage, manifest, self._cache / "weights")

    def proofs(self, manifest: Manifest) -> list[Proof]:
        """Its validation pictures, with what each shows."""
        return [Proof(key=key, prompt=_prompt_of(self.proof(manifest, key))) for key in manifest.validation_images]

    def proof(self, manifest: Manifest, key: str) -> Path:
        """One validation picture. Raises ``PageError`` if the manifest names none of that key."""
        if key not in manifest.validation_images:
            raise PageError("error.no_picture", status=404)
        path = self._cache / "proofs" / manifest.weights.sha256 / f"{manifest.version}-{Path(key).name}"
        if not path.exists():
            write_atomically(
                path, self._storage.read(f"{manifest.name}/{manifest.version}/{key}").content, durable=False
            )
        return path

    def make_latest(self, name: str, version: int) -> None:
        """Let the name mean this version."""
        self.manifest(name, version)
        adapter.set_latest(self._storage, name, version)

    def remove(self, name: str, version: int | None) -> None:
        """Remove one version, or all, for good."""
        _check(name)
        if version is None:
            adapter.remove_adapter(self._storage, name)
        else:
            adapter.remove_version(self._storage, name, version)

    def _shelved(self, name: str, numbers: list[int]) -> Shelved:
        try:
            latest = adapter.latest_version(self._storage, name)
        except StorageMissingError:
            latest = None
        versions, broken = [], {}
        for number in sorted(numbers, reverse=True):
            try:
                versions.append(adapter.read_manifest(self._storage, name, number))
            except AdapterError as error:
                broken[number] = str(error)
        return Shelved(name=name, latest=latest, versions=tuple(versions), broken=broken)


def _check(name: str) -> None:
    """Raise ``PageError`` unless an adapter could have that name."""
    try:
        is_name = adapter.parse_reference(name).version is None
    except AdapterError:
        is_name = False
    if not is_name:
        raise PageError("error.no_adapter", status=404, value=name)


def _prompt_of(path: Path) -> str:
    try:
        with Image.open(io.BytesIO(path.read_bytes())) as picture:
            return str(json.loads(picture.info.get(_SAYS_PROMPT, "{}")).get("prompt", ""))
    except (UnidentifiedImageError, ValueError):
        return ""
