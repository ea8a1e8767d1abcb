"""Files that are there whole or not at all. No torch."""

import os
import tempfile
from pathlib import Path

from longcat.errors import StorageError


def write_atomically(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write beside the path and rename; ``durable`` waits for the disk. Raises ``StorageError`` if that cannot be done."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        partial = Path(name)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
                stream.flush()
                if durable:
                    os.fsync(stream.fileno())
            partial.chmod(0o644)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror or error}; check the path, its permissions and the disk"
        ) from error
