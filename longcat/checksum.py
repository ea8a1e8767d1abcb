"""Checksums of files: hashed in parallel, and remembered for files that did not change since."""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from longcat.errors import StorageError
from longcat.storage.atomic import write_atomically

_MOST_THREADS = 8
_MOST_REMEMBERED = 4096
"""Files whose checksums are remembered: those of dozens of models."""
_SETTLED_NS = 2 * 10**9
"""Age of a file's last change from which its times tell it from every later change: coarser clocks are not in use."""

_Identity = tuple[int, int, int, int, int]
"""Device, inode, size, and the times of the last change of content and of anything, in nanoseconds."""
_remembered: dict[str, Path] = {}


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content as 64 hex digits, without reading the file into memory whole."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def remember_checksums(folder: Path) -> None:
    """Let ``checksums`` remember, in a file of this folder, from now on. Commands call it, with the user's cache."""
    _remembered["file"] = folder / "checksums.json"


def checksums(paths: Iterable[Path]) -> Mapping[Path, str]:
    """Return the SHA-256 of each file. Files whose identity is remembered are not read; the others are, in parallel.

    A file that changed has another identity. What cannot be remembered is hashed again next time, never an error.
    """
    files = list(paths)
    before = {path: _identity(path) for path in files}
    known = _read()
    found = {path: known[key] for path, identity in before.items() if (key := _key(identity)) in known}
    missing = [path for path in files if path not in found]
    if not missing:
        return found
    begin = time.time_ns()
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
        made = dict(zip(missing, pool.map(file_sha256, missing), strict=True))
    _remember(
        {
            _key(before[path]): digest
            for path, digest in made.items()
            if _identity(path) == before[path] and max(before[path][3:]) < begin - _SETTLED_NS
        }
    )
    return found | made


def _identity(path: Path) -> _Identity:
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _key(identity: _Identity) -> str:
    return " ".join(map(str, identity))


def _read() -> dict[str, str]:
    """Return the remembered checksums by identity; none if the file is missing, unreadable or not ours."""
    if (file := _remembered.get("file")) is None:
        return {}
    try:
        known = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(known, dict):
        return {}
    return {key: digest for key, digest in known.items() if isinstance(digest, str) and len(digest) == 64}


def _remember(made: Mapping[str, str]) -> None:
    file = _remembered.get("file")
    if file is None or not made:
        return
    known = {**_read(), **made}  # what another process remembered meanwhile is kept, or lost if both write at once
    newest = dict(list(known.items())[-_MOST_REMEMBERED:])
    with contextlib.suppress(OSError, StorageError):  # a read-only or full disk
        write_atomically(file, json.dumps(newest).encode(), durable=False)
