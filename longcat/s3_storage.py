"""Storage below a prefix of an S3 bucket, with conditional writes (``If-None-Match``, ``If-Match``)."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from longcat.errors import StorageConflictError, StorageError, StorageMissingError
from longcat.storage import Blob, Entry, Storage, check_key

_PART_BYTES = 8 * 2**20
"""Of a multipart upload or download; smaller objects take one request."""


class S3Storage(Storage):
    """Objects below a prefix of a bucket."""

    def __init__(self, bucket: str, prefix: str, *, endpoint_url: str | None = None) -> None:
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")
        retries = {"mode": "standard", "max_attempts": 5}
        config = Config(retries=retries, connect_timeout=5, read_timeout=30)
        try:
            self._client = boto3.Session().client("s3", endpoint_url=endpoint_url, config=config)
        except (ValueError, BotoCoreError) as error:
            raise StorageError(f"{self.uri}: {error}; check the endpoint's URL and the AWS settings") from error
        self._transfer = TransferConfig(multipart_threshold=_PART_BYTES, multipart_chunksize=_PART_BYTES)

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
            if content.stat().st_size <= _PART_BYTES:
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
        except ClientError as error:
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
                for number, chunk in enumerate(iter(lambda: stream.read(_PART_BYTES), b""), 1):
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
        return self._prefix + check_key(key)


@contextlib.contextmanager
def _s3_errors(what: str) -> Iterator[None]:
    """S3's errors as ours."""
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
