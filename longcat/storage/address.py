"""Addresses of storage: ``file:///directory`` and ``s3://bucket/prefix``, percent-encoded as URIs are."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes, urlsplit

from longcat.errors import StorageError

_BUCKET = re.compile(r"[A-Za-z0-9._-]{1,255}")
"""A bucket's name, as botocore allows it."""
_ENCODED = re.compile(r"[%#?]|\s\Z")
"""Characters that a URI of S3 percent-encodes; all others are kept, so that it can be read."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
"""Characters that ``urlsplit`` removes without an error, and NUL."""


@dataclass(frozen=True, kw_only=True)
class FileAddress:
    """A directory."""

    folder: Path

    def __str__(self) -> str:
        return self.folder.absolute().as_uri()


@dataclass(frozen=True, kw_only=True)
class S3Address:
    """A prefix of a bucket; an empty prefix is the whole bucket."""

    bucket: str
    prefix: str

    def __str__(self) -> str:
        prefix = _ENCODED.sub(lambda match: quote(match[0]), self.prefix)
        return f"s3://{self.bucket}/{prefix}".rstrip("/")


def parse_address(uri: str, *, field: str = "storage") -> FileAddress | S3Address:
    """Parse the URI of a storage. Raises ``StorageError`` about ``field``.

    A fragment or a query has no meaning for a storage. It is refused, because ignoring it would use another directory.
    """
    for character in "#?":
        if character in uri:
            raise StorageError(
                "storage_uri_not_encoded",
                "holds {character!r}, which ends the path of a URI",
                remedy="write it as {encoded}: {corrected}",
                field=field,
                value=uri,
                character=character,
                encoded=quote(character),
                corrected=uri.replace("#", "%23").replace("?", "%3F"),
            )
    try:
        parts = urlsplit(uri)
        path = os.fsdecode(unquote_to_bytes(parts.path))
        if uri == uri.strip() and not _CONTROL.search(uri) and "\0" not in path:
            if parts.scheme == "file" and parts.netloc in ("", "localhost") and path.startswith("/"):
                return FileAddress(folder=Path(path))
            prefix = path.strip("/")
            if parts.scheme == "s3" and _BUCKET.fullmatch(parts.netloc) and prefix.isprintable():
                return S3Address(bucket=parts.netloc, prefix=prefix)
    except ValueError:  # brackets that are no IPv6 address
        pass
    raise StorageError(
        "storage_uri_invalid",
        "not the URI of a storage",
        remedy="give file:///directory or s3://bucket/prefix",
        field=field,
        value=uri,
    )
