"""Shared storage for adapters: ``file://`` directories and ``s3://`` prefixes behind one small interface.

Keys are relative, ``/``-separated names. A key's content appears whole or not at all, and can be created only if absent or
replaced only if unchanged, so that writers on different machines need no lock of their own. Directories do it with renames
under a lock, S3 with conditional writes (``If-None-Match``, ``If-Match``).
"""

import contextlib
import fcntl
import hashlib
import os
import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

from longcat.errors import StorageConflictError, StorageError, StorageMissingError

_KEY = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*$")
_CHUNK_BYTES = 8 * 2**20


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What is stored under a key."""

    key: str
    size_bytes: int
    etag: str
    """Changes whenever the content does; opaque."""


@dataclass(frozen=True, kw_only=True)
class Blob:
    """A small object, read whole."""

    content: bytes
    etag: str


class Storage(ABC):
    """Atomic objects by key. Every method raises ``StorageError`` when the storage cannot be reached or refuses."""

    uri: str

    @abstractmethod
    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Everything whose key starts with ``prefix``, in no particular order."""

    @abstractmethod
    def read(self, key: str) -> Blob:
        """A small object. Raises ``StorageMissingError``."""

    @abstractmethod
    def download(self, key: str, target: Path) -> None:
        """A large object into a new file. Raises ``StorageMissingError``."""

    @abstractmethod
    def create(self, key: str, content: bytes | Path) -> str:
        """Store under a key that is not taken; its etag. Raises ``StorageConflictError`` if it is."""

    @abstractmethod
    def replace(self, key: str, content: bytes, *, etag: str) -> str:
        """Replace what has this etag; the new etag. Raises ``StorageConflictError`` if it has changed or is gone."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove a key; nothing happens if it is not there."""


def open_storage(uri: str, *, endpoint_url: str | None = None) -> Storage:
    """Storage at ``file:///directory`` or ``s3://bucket/prefix``.

    S3 takes region and credentials from the usual AWS chain; ``endpoint_url`` is for stores that are not AWS.
    """
    parts = urlsplit(uri)
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and parts.path:
        return FileStorage(Path(unquote(parts.path)))
    if parts.scheme == "s3" and parts.netloc:
        return S3Storage(parts.netloc, parts.path.strip("/"), endpoint_url=endpoint_url)
    raise StorageError(f"storage {uri!r} is neither file:///directory nor s3://bucket/prefix")


class FileStorage(Storage):
    """Objects as files below a directory: a local disk or a shared volume."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self.uri = self._root.as_uri()

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Walks the directory; files that are being written are not seen."""
        with _file_errors(self.uri):
            for folder, folders, names in os.walk(self._root, onerror=_unless_missing):
                folders[:] = [name for name in folders if not name.startswith(".")]
                for name in names:
                    path = Path(folder, name)
                    key = path.relative_to(self._root).as_posix()
                    if name.startswith(".") or not key.startswith(prefix):
                        continue
                    with contextlib.suppress(FileNotFoundError):  # removed since it was listed
                        yield Entry(key=key, size_bytes=path.stat().st_size, etag=_file_etag(path.stat()))

    def read(self, key: str) -> Blob:
        """The file and the etag of what was read, also while it is being replaced."""
        with _file_errors(f"{self.uri}/{key}"), self._path(key).open("rb") as stream:
            return Blob(content=stream.read(), etag=_file_etag(os.fstat(stream.fileno())))

    def download(self, key: str, target: Path) -> None:
        """Copy into ``target``."""
        with _file_errors(f"{self.uri}/{key}"), self._path(key).open("rb") as source, target.open("xb") as copy:
            _copy(source, copy)

    def create(self, key: str, content: bytes | Path) -> str:
        """Write beside the key and link: the link fails if the key is taken."""
        path = self._path(key)
        with _file_errors(f"{self.uri}/{key}"), self._written_beside(path, content) as partial:
            os.link(partial, path)
            return _file_etag(path.stat())

    def replace(self, key: str, content: bytes, *, etag: str) -> str:
        """Compare and rename under a lock that all writers of this directory take."""
        path = self._path(key)
        with _file_errors(f"{self.uri}/{key}"), self._written_beside(path, content) as partial, _locked(path.parent):
            if not path.exists() or _file_etag(path.stat()) != etag:
                raise StorageConflictError(f"{self.uri}/{key} has changed since it was read; read it again")
            partial.rename(path)
            return _file_etag(path.stat())

    def delete(self, key: str) -> None:
        """Remove the file, and directories that it leaves empty."""
        path = self._path(key)
        with _file_errors(f"{self.uri}/{key}"):
            path.unlink(missing_ok=True)
            for parent in path.parents:
                if parent == self._root:
                    return
                try:
                    parent.rmdir()
                except OSError:  # not empty, or another writer is putting something there
                    return

    def _path(self, key: str) -> Path:
        return self._root / _checked(key)

    @contextlib.contextmanager
    def _written_beside(self, path: Path, content: bytes | Path) -> Iterator[Path]:
        """A hidden file with the content, on disk for good, in the key's directory; gone afterwards."""
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        partial = Path(name)
        try:
            with os.fdopen(handle, "wb") as stream:
                if isinstance(content, bytes):
                    stream.write(content)
                else:
                    with content.open("rb") as source:
                        _copy(source, stream)
                stream.flush()
                os.fsync(stream.fileno())
            partial.chmod(0o644)  # mkstemp's 0600 would hide it from a service that runs as another user
            yield partial
        finally:
            partial.unlink(missing_ok=True)


class S3Storage(Storage):
    """Objects below a prefix of a bucket."""

    def __init__(self, bucket: str, prefix: str, *, endpoint_url: str | None = None) -> None:
        import boto3  # here: it takes a while to import, and file:// needs none of it
        from boto3.s3.transfer import TransferConfig
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")
        retries = {"mode": "standard", "max_attempts": 5}
        config = Config(retries=retries, connect_timeout=5, read_timeout=30)
        try:
            self._client = boto3.Session().client("s3", endpoint_url=endpoint_url, config=config)
        except (ValueError, BotoCoreError) as error:
            raise StorageError(f"{self.uri}: {error}; check the endpoint's URL and the AWS settings") from error
        self._transfer = TransferConfig(multipart_threshold=_CHUNK_BYTES, multipart_chunksize=_CHUNK_BYTES)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Pages through the bucket."""
        with _s3_errors(self.uri):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix + prefix
            )
            for page in pages:
                for found in page.get("Contents", ()):
                    key = found["Key"].removeprefix(self._prefix)
                    yield Entry(key=key, size_bytes=found["Size"], etag=found["ETag"])

    def read(self, key: str) -> Blob:
        """One GET; the key may be of any form, as others have written it."""
        with _s3_errors(f"{self.uri}/{key}"):
            reply = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key)
            return Blob(content=reply["Body"].read(), etag=reply["ETag"])

    def download(self, key: str, target: Path) -> None:
        """In parallel ranges, with retries; the key may be of any form."""
        with _s3_errors(f"{self.uri}/{key}"), target.open("xb") as stream:
            self._client.download_fileobj(self._bucket, self._prefix + key, stream, Config=self._transfer)

    def create(self, key: str, content: bytes | Path) -> str:
        """One conditional PUT, or a multipart upload whose completion is conditional."""
        with _s3_errors(f"{self.uri}/{key}"):
            if isinstance(content, bytes):
                return self._put_once(key, content)
            if content.stat().st_size <= _CHUNK_BYTES:
                return self._put_once(key, content.read_bytes())
            return self._create_in_parts(key, content)

    def replace(self, key: str, content: bytes, *, etag: str) -> str:
        """One conditional PUT."""
        with _s3_errors(f"{self.uri}/{key}"):
            return self._put(key, content, IfMatch=etag)

    def delete(self, key: str) -> None:
        """One DELETE."""
        with _s3_errors(f"{self.uri}/{key}"):
            self._client.delete_object(Bucket=self._bucket, Key=self._key(key))

    def _put_once(self, key: str, content: bytes) -> str:
        """Create a key; if the reply to a first try was lost and the retry finds the key taken by us, that is success."""
        try:
            return self._put(key, content, IfNoneMatch="*")
        except self._client.exceptions.ClientError as error:
            if (
                error.response["ResponseMetadata"]["HTTPStatusCode"] == 412
                and error.response["ResponseMetadata"]["RetryAttempts"]
            ):
                there = self.read(key)
                if there.content == content:
                    return there.etag
            raise

    def _put(self, key: str, content: bytes, **condition: str) -> str:
        reply = self._client.put_object(Bucket=self._bucket, Key=self._key(key), Body=content, **condition)
        etag: str = reply["ETag"]
        return etag

    def _create_in_parts(self, key: str, content: Path) -> str:
        target: dict[str, Any] = {"Bucket": self._bucket, "Key": self._key(key)}
        upload = self._client.create_multipart_upload(**target)["UploadId"]
        try:
            parts = []
            with content.open("rb") as stream:
                for number, chunk in enumerate(iter(lambda: stream.read(_CHUNK_BYTES), b""), 1):
                    reply = self._client.upload_part(**target, UploadId=upload, PartNumber=number, Body=chunk)
                    parts.append({"PartNumber": number, "ETag": reply["ETag"]})
            done = self._client.complete_multipart_upload(
                **target, UploadId=upload, MultipartUpload={"Parts": parts}, IfNoneMatch="*"
            )
        except BaseException:
            self._client.abort_multipart_upload(**target, UploadId=upload)
            raise
        etag: str = done["ETag"]
        return etag

    def _key(self, key: str) -> str:
        return self._prefix + _checked(key)


@contextlib.contextmanager
def _file_errors(what: str) -> Iterator[None]:
    """A file system's errors as ours."""
    try:
        yield
    except FileNotFoundError as error:
        raise StorageMissingError(f"{what} is not there") from error
    except FileExistsError as error:
        raise StorageConflictError(f"{what} is there already; it is never overwritten") from error
    except OSError as error:
        raise StorageError(
            f"{what}: {error.strerror or error}; check the path, its permissions and the disk"
        ) from error


@contextlib.contextmanager
def _s3_errors(what: str) -> Iterator[None]:
    """S3's errors as ours."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        code, status = error.response["Error"]["Code"], error.response["ResponseMetadata"]["HTTPStatusCode"]
        if code == "NoSuchBucket":
            raise StorageError(f"{what}: there is no such bucket; create it first") from error
        if status == 404:
            raise StorageMissingError(f"{what} is not there") from error
        if status in (409, 412):
            raise StorageConflictError(f"{what} is there already, or has changed since it was read") from error
        raise StorageError(f"{what}: {code} (HTTP {status}); check the credentials and what they permit") from error
    except (BotoCoreError, Boto3Error) as error:
        raise StorageError(
            f"{what} cannot be reached: {error}; check endpoint, region, credentials and network"
        ) from error


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / ".lock").open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _checked(key: str) -> str:
    if not _KEY.match(key):
        raise StorageError(f"key {key!r}: use letters, digits, '.', '_' and '-', starting with a letter or digit")
    return key


def _unless_missing(error: OSError) -> None:
    """A directory that is gone holds nothing; one that cannot be read is not the same as an empty one."""
    if not isinstance(error, FileNotFoundError):
        raise error


def _file_etag(status: os.stat_result) -> str:
    identity = f"{status.st_ino}:{status.st_mtime_ns}:{status.st_size}"
    return hashlib.sha256(identity.encode()).hexdigest()[:32]


def _copy(source: BinaryIO, target: BinaryIO) -> None:
    while chunk := source.read(_CHUNK_BYTES):
        target.write(chunk)
