"""Storage below a prefix of an S3 bucket, with conditional writes (``If-None-Match``, ``If-Match``)."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import botocore.session
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.configprovider import ConfiguredEndpointProvider
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, IncompleteReadError

from longcat.errors import StorageConflictError, StorageError, StorageMissingError
from longcat.problem import show
from longcat.storage.address import S3Address
from longcat.storage.deadlines import Deadlines
from longcat.storage.disk import needing_room
from longcat.storage.interface import MAX_OBJECT_BYTES, Blob, Entry, Storage, check_key, too_large
from longcat.storage.tree import LEAST_BYTES_PER_SECOND, download_seconds

_CHECKSUMS = ("request_checksum_calculation", "response_checksum_validation")
_NOT_FOUND = 404
_CONFLICTS = (409, 412)
_DENIED = (401, 403)
_PART_BYTES = 8 * 2**20
"""Part of a multipart upload or download. Smaller objects take one request."""
_REQUEST_SECONDS = 15.0
"""The longest that a small object or a page of a listing is waited for, retries included."""
_CONNECTIONS = 32
_ATTEMPTS = 3


class S3Storage(Storage):
    """Objects below a prefix of a bucket."""

    def __init__(self, bucket: str, prefix: str, *, endpoint_url: str | None = None) -> None:
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self.uri = str(S3Address(bucket=bucket, prefix=prefix))
        try:
            self._client = _client(endpoint_url)
        except (ValueError, BotoCoreError) as error:
            raise StorageError(
                "s3_settings_invalid",
                "{uri} cannot be used: {reason}",
                remedy="check the endpoint URL and the AWS settings",
                uri=self.uri,
                reason=str(error),
            ) from error
        self._deadlines = Deadlines()
        self._transfer = TransferConfig(multipart_threshold=_PART_BYTES, multipart_chunksize=_PART_BYTES)

    def probe(self) -> None:
        """List one object."""
        with _s3_errors(self.uri):
            self._deadlines.run(
                self.uri,
                _REQUEST_SECONDS,
                lambda: self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix, MaxKeys=1),
            )

    def find(self, *patterns: str) -> Iterator[Entry]:
        """List every object below what the patterns have in common, once, and select."""
        prefixes = {pattern.partition("*")[0] for pattern in patterns}
        prefix = prefixes.pop() if len(prefixes) == 1 else ""
        matches = re.compile("|".join(re.escape(pattern).replace(r"\*", "[^/]+") for pattern in patterns)).fullmatch
        return (entry for entry in self.list(prefix) if matches(entry.key))

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """List objects, page by page."""
        pages = iter(
            self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._prefix + prefix)
        )
        with _s3_errors(self.uri):
            while page := self._deadlines.run(self.uri, _REQUEST_SECONDS, lambda: next(pages, None)):
                for found in page.get("Contents", ()):
                    key = found["Key"].removeprefix(self._prefix)
                    yield Entry(key=key, size_bytes=found["Size"], etag=found["ETag"])

    def read(self, key: str, *, max_bytes: int = MAX_OBJECT_BYTES) -> Blob:
        """Read with one GET. The key may have any form, because other programs may have written it."""
        uri = f"{self.uri}/{key}"

        def read() -> Blob:
            reply = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key)
            with contextlib.closing(reply["Body"]) as body:
                if reply["ContentLength"] > max_bytes:
                    raise too_large(uri, max_bytes)
                return Blob(content=body.read(), etag=reply["ETag"])

        def read_again() -> Blob:
            """Read a body that broke off; botocore repeats a request only until its body begins."""
            for _ in range(_ATTEMPTS - 1):
                with contextlib.suppress(HTTPClientError, IncompleteReadError):
                    return read()
            return read()

        with _s3_errors(uri):
            return self._deadlines.run(uri, _REQUEST_SECONDS + max_bytes / LEAST_BYTES_PER_SECOND, read_again)

    def download(self, key: str, target: Path, *, max_bytes: int | None = None) -> None:
        """Download in parallel ranges, with retries. The key may have any form."""
        uri, place = f"{self.uri}/{key}", {"Bucket": self._bucket, "Key": self._prefix + key}

        def download() -> None:
            with target.open("xb") as stream:
                self._client.download_fileobj(**place, Fileobj=stream, Config=self._transfer)

        def download_bounded() -> None:
            if self._client.head_object(**place)["ContentLength"] > max_bytes:
                raise too_large(uri, max_bytes)
            download()

        with _s3_errors(uri), needing_room(target):
            if max_bytes is None:
                download()
            elif max_bytes <= _PART_BYTES:
                target.write_bytes(self.read(key, max_bytes=max_bytes).content)
            else:
                self._deadlines.run(uri, download_seconds(max_bytes), download_bounded)

    def create(self, key: str, content: bytes | Path) -> str:
        """Store with one conditional PUT, or with a multipart upload whose completion is conditional."""
        with _s3_errors(f"{self.uri}/{key}"):
            if isinstance(content, bytes):
                return self._put_once(key, content)
            if content.stat().st_size <= _PART_BYTES:
                return self._put_once(key, content.read_bytes())
            return self._create_in_parts(key, content)

    def replace(self, key: str, content: bytes, *, etag: str) -> str:
        """Replace with one conditional PUT."""
        with _s3_errors(f"{self.uri}/{key}"):
            return self._put(key, content, IfMatch=etag)

    def delete(self, key: str) -> None:
        """Remove with one DELETE."""
        with _s3_errors(f"{self.uri}/{key}"):
            self._client.delete_object(Bucket=self._bucket, Key=self._key(key))

    def _put_once(self, key: str, content: bytes) -> str:
        """Create a key. A retry after a lost reply that finds the key with the same content counts as success."""
        try:
            return self._put(key, content, IfNoneMatch="*")
        except ClientError as error:
            if (
                error.response["ResponseMetadata"]["HTTPStatusCode"] == 412
                and error.response["ResponseMetadata"]["RetryAttempts"]
            ):
                stored = self.read(key)
                if stored.content == content:
                    return stored.etag
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
                for number, chunk in enumerate(iter(lambda: stream.read(_PART_BYTES), b""), 1):
                    reply = self._client.upload_part(**target, UploadId=upload, PartNumber=number, Body=chunk)
                    parts.append({"PartNumber": number, "ETag": reply["ETag"]})
            done = self._client.complete_multipart_upload(
                **target, UploadId=upload, MultipartUpload={"Parts": parts}, IfNoneMatch="*"
            )
        except BaseException:  # also an interruption, raised again: the store would keep and charge for the parts
            with contextlib.suppress(ClientError, BotoCoreError):  # the upload's own error is reported
                self._client.abort_multipart_upload(**target, UploadId=upload)
            raise
        etag: str = done["ETag"]
        return etag

    def _key(self, key: str) -> str:
        return self._prefix + check_key(key)


def _client(endpoint_url: str | None) -> Any:
    """Return boto3's client. Stores other than AWS may refuse the checksums that boto3 adds, so they get none.

    Adapters have a SHA-256 of their own.
    """
    session = botocore.session.Session()
    if endpoint_url is None and not session.get_config_variable("ignore_configured_endpoint_urls"):
        endpoint_url = ConfiguredEndpointProvider(
            full_config=session.full_config, scoped_config=session.get_scoped_config(), client_name="s3"
        ).provide()
    checksums = {} if endpoint_url is None else dict.fromkeys(_CHECKSUMS, "when_required")
    retries = {"mode": "standard", "max_attempts": 5}
    config = Config(retries=retries, connect_timeout=5, read_timeout=30, max_pool_connections=_CONNECTIONS, **checksums)
    return boto3.Session(botocore_session=session).client("s3", endpoint_url=endpoint_url, config=config)


@contextlib.contextmanager
def _s3_errors(uri: str) -> Iterator[None]:
    """Convert S3's errors to ours."""
    try:
        yield
    except ClientError as error:
        raise _error_of(error, uri) from error
    except (BotoCoreError, Boto3Error) as error:
        raise StorageError(
            "s3_unreachable",
            "{uri} cannot be reached: {reason}",
            remedy="check endpoint, region, credentials and network",
            uri=uri,
            reason=str(error),
        ) from error


def _error_of(error: ClientError, uri: str) -> StorageError:
    """Return our error for an answer of the store, with the store's own message."""
    code, message = error.response["Error"]["Code"], error.response["Error"].get("Message", "")
    status = error.response["ResponseMetadata"]["HTTPStatusCode"]
    details = {"uri": uri, "reply": show(f"{code}: {message}" if message else code), "status": status}
    if code == "NoSuchBucket":
        return StorageError(
            "s3_bucket_missing",
            "the bucket of {uri} does not exist: S3 answered {reply}",
            remedy="create it first",
            **details,
        )
    if status == _NOT_FOUND:
        return StorageMissingError("s3_key_missing", "{uri} does not exist: S3 answered {reply}", **details)
    if status in _CONFLICTS:
        return StorageConflictError(
            "s3_key_conflict", "{uri} exists already, or has changed since it was read: S3 answered {reply}", **details
        )
    if status in _DENIED:
        return StorageError(
            "s3_denied",
            "{uri}: S3 answered {reply} (HTTP {status})",
            remedy="check the credentials and their permissions",
            **details,
        )
    return StorageError(
        "s3_request_refused",
        "{uri}: S3 answered {reply} (HTTP {status})",
        remedy="check endpoint, region and bucket, and that the store supports conditional writes",
        **details,
    )
