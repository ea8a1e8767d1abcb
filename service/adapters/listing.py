"""A listing of adapter storage, from whose ETags changes since the previous one are found."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from longcat.adapter.reference import parse_name
from longcat.errors import AdapterError
from longcat.storage.interface import Storage

Mark = tuple[str | None, str | None, str | None]
"""The ETags of ``latest`` and of one version's manifest and weights, which may be replaced under an unchanged ``latest``."""

_LATEST, _MANIFEST, _WEIGHTS = "/latest", "/manifest.json", "/adapter.safetensors"


@dataclass(frozen=True, kw_only=True)
class AdapterListing:
    """The ETags of all adapters."""

    begun_at: float
    etags: Mapping[str, str]
    """ETags by key."""
    names: frozenset[str]
    """Names that have a latest version. Directories and keys that are invalid for adapters are left out."""

    @classmethod
    def of(cls, storage: Storage) -> Self:
        """List a storage. Raises ``StorageError``."""
        begun_at = time.monotonic()
        found = storage.find(f"*{_LATEST}", f"*/*{_MANIFEST}", f"*/*{_WEIGHTS}")
        etags = {entry.key: entry.etag for entry in found}
        names = (key.removesuffix(_LATEST) for key in etags if key.endswith(_LATEST))
        return cls(begun_at=begun_at, etags=etags, names=frozenset(filter(_is_name, names)))

    def mark(self, name: str, version: int | None) -> Mark:
        """Return the ETags that change whenever the name's latest version or its content changes."""
        folder = f"{name}/{version}"
        etag = self.etags.get
        return etag(name + _LATEST), etag(folder + _MANIFEST), etag(folder + _WEIGHTS)

    def manifest_etag(self, name: str, version: int) -> str | None:
        """Return the ETag of a version's manifest; None if it has none."""
        return self.etags.get(f"{name}/{version}{_MANIFEST}")


def _is_name(text: str) -> bool:
    try:
        parse_name(text)
    except AdapterError:
        return False
    return True
