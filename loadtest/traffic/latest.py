"""The version that an adapter's ``latest`` names in storage, and the time of its change, for ``loadtest.freshness``."""

import asyncio
import time
from abc import ABC, abstractmethod
from pathlib import Path
from urllib.parse import unquote, urlsplit

import boto3

_BETWEEN_LOOKS_SECONDS = 0.02


class Latest(ABC):
    """An adapter's ``latest``, the last object that a publication writes."""

    @abstractmethod
    def version(self) -> int:
        """Return the version that it names now."""

    @abstractmethod
    async def written(self, version: int) -> float:
        """Wait for a version; return the time of its writing, by ``time.time``."""


def open_latest(storage: str, name: str, *, endpoint_url: str | None = None) -> Latest:
    """Return ``latest`` of an adapter in ``file:///directory`` or ``s3://bucket/prefix``."""
    parts = urlsplit(storage)
    if parts.scheme == "file":
        return _LatestFile(Path(unquote(parts.path), name, "latest"))
    return _LatestObject(parts.netloc, f"{parts.path}/{name}/latest".strip("/"), endpoint_url)


class _LatestFile(Latest):
    """A file, whose modification time is the time of writing."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def version(self) -> int:
        return int(self._path.read_bytes())

    async def written(self, version: int) -> float:
        while self.version() < version:
            await asyncio.sleep(_BETWEEN_LOOKS_SECONDS)
        return self._path.stat().st_mtime


class _LatestObject(Latest):
    """An S3 object, which is polled, because S3 has times in whole seconds; the last poll of the old version counts."""

    def __init__(self, bucket: str, key: str, endpoint_url: str | None) -> None:
        self._where = {"Bucket": bucket, "Key": key}
        self._client = boto3.Session().client("s3", endpoint_url=endpoint_url)

    def version(self) -> int:
        return int(self._client.get_object(**self._where)["Body"].read())

    async def written(self, version: int) -> float:
        old = time.time()
        while True:
            look = time.time()
            if await asyncio.to_thread(self.version) >= version:
                return old
            old = look
            await asyncio.sleep(_BETWEEN_LOOKS_SECONDS)
