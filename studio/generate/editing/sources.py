"""The pictures that are edited, and their masks: ``gallery/sources/<SHA-256>.png``.

A picture of the gallery that was made from some has links to their files beside it: they share the disk, and go with it.
The files here serve open pages; those that were not opened for a week are removed.
"""

import hashlib
import os
import re
import shutil
import time
from contextlib import suppress
from pathlib import Path

from longcat.storage.atomic import write_atomically
from longcat.storage.disk import writing
from studio.web.errors import PictureNotFoundError

_DIGEST = re.compile(r"[0-9a-f]{64}")
_KEPT_SECONDS = 7 * 24 * 3600


class Sources:
    """Files by their SHA-256, below one directory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, content: bytes) -> str:
        """Store a PNG and return its SHA-256. Raises ``StorageError`` if the disk is full or cannot be written."""
        self._remove_old()
        digest = hashlib.sha256(content).hexdigest()
        if not self._file(digest).is_file():
            write_atomically(self._file(digest), content, durable=False)
        return digest

    def path(self, digest: str) -> Path:
        """Return the path of a file, which then stays another week. Raises ``PictureNotFoundError``."""
        path = self._file(digest)
        try:
            os.utime(path)
        except OSError as error:
            raise PictureNotFoundError from error
        return path

    def keep_in(self, folder: Path, digest: str) -> None:
        """Put a file into the directory of a picture that was made from it."""
        _link(self.path(digest), folder / f"{digest}.png")

    def take_from(self, folder: Path, digest: str) -> None:
        """Take back a file from there, so that it can be used again. Raises ``PictureNotFoundError``."""
        with writing(self._folder, field="gallery"):
            self._folder.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                _link(folder / f"{digest}.png", self._file(digest))
        self.path(digest)

    def _file(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise PictureNotFoundError
        return self._folder / f"{digest}.png"

    def _remove_old(self) -> None:
        oldest = time.time() - _KEPT_SECONDS
        for path in self._folder.glob("*.png"):
            with suppress(FileNotFoundError):  # removed meanwhile
                if path.stat().st_mtime < oldest:
                    path.unlink()


def _link(source: Path, target: Path) -> None:
    """Make a hard link, or a copy where the file system has none."""
    try:
        os.link(source, target)
    except FileExistsError:
        return
    except FileNotFoundError:
        raise
    except OSError:  # no hard links here
        shutil.copyfile(source, target)
