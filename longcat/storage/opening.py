"""Opening of a storage by its URI."""

from longcat.storage.address import FileAddress, parse_address
from longcat.storage.files import FileStorage
from longcat.storage.interface import Storage


def open_storage(uri: str, *, endpoint_url: str | None = None) -> Storage:
    """Open the storage at ``file:///directory`` or ``s3://bucket/prefix``. Raises ``StorageError`` for any other URI.

    S3 takes region and credentials from the usual AWS chain; ``endpoint_url`` is for stores other than AWS.
    """
    address = parse_address(uri)
    if isinstance(address, FileAddress):
        return FileStorage(address.folder)
    from longcat.storage.s3 import S3Storage  # boto3 is slow to import, and file:// does not need it

    return S3Storage(address.bucket, address.prefix, endpoint_url=endpoint_url)
