"""Atomic writes of single files. No torch."""

import os
import tempfile
from pathlib import Path

from longcat.storage.disk import writing


def write_atomically(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write a temporary file and rename it to the path; ``durable`` waits for the disk. Raises ``StorageError``."""
    with writing(path):
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
