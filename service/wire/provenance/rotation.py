"""The certificate of a running server, which follows the changes of its files."""

import logging
import os
import threading
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from longcat.errors import ConfigError
from longcat.logs import log_event
from service.wire.provenance.credential import read_credential
from service.wire.provenance.signing import Ingredient, ManifestSigner

log = logging.getLogger("lithograph")

CHECK_SECONDS = 30.0
"""Time between two looks at the files."""
_WARNED_BEFORE = timedelta(days=7)
_WARNING_SECONDS = 86400.0

_Stamp = tuple[tuple[int, int, int], ...]


class RotatingSigner:
    """Signs with the certificate and key of two files, and with their successors. Threads may share it.

    Files are replaced one after the other, and Kubernetes replaces both by a link: a pair that cannot sign leaves the last
    one in use, with a log line, and is read again at each look. From a week before the end, a line a day warns.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        """Read the files, and sign a picture for trial. Raises ``ConfigError`` unless they are a pair that can sign."""
        self._files = certificate, key
        self._lock = threading.Lock()
        self._stamp = _stamp_of(self._files)
        self._signer, self._end = self._read()
        self._problem = ""
        """The last change could not be read for this reason, which is logged once."""
        self._next_look = time.monotonic() + CHECK_SECONDS
        self._next_warning = 0.0

    def sign(
        self, content: bytes, media_type: str, ingredients: Sequence[Ingredient], parent: bytes | None = None
    ) -> bytes:
        """Return a picture file with a manifest, as ``ManifestSigner.sign`` does. Raises ``EngineError``."""
        with self._lock:
            if time.monotonic() >= self._next_look:
                self._look()
                self._next_look = time.monotonic() + CHECK_SECONDS
            signer = self._signer
        return signer.sign(content, media_type, ingredients, parent)

    def _look(self) -> None:
        """Read the files again if they have changed, and warn of the certificate's end."""
        stamp = _stamp_of(self._files)
        try:
            if stamp != self._stamp:
                self._signer, self._end = self._read()
                self._stamp, self._problem = stamp, ""
                log_event(log, "c2pa_certificate_read", expires=self._end.isoformat())
        except ConfigError as error:
            if self._problem != (problem := str(error)):
                self._problem = problem
                log_event(
                    log, "c2pa_certificate_not_read", logging.ERROR, reason=problem, expires=self._end.isoformat()
                )
        if datetime.now(UTC) > self._end - _WARNED_BEFORE and time.monotonic() >= self._next_warning:
            self._next_warning = time.monotonic() + _WARNING_SECONDS
            log_event(log, "c2pa_certificate_expires", logging.WARNING, expires=self._end.isoformat())

    def _read(self) -> tuple[ManifestSigner, datetime]:
        credential = read_credential(*self._files)
        signer = ManifestSigner(credential)
        signer.check(field="c2pa_certificate", value=str(self._files[0]))
        return signer, credential.end


def _stamp_of(files: Iterable[Path]) -> _Stamp:
    """Return what changes when a file is written or replaced; of a file that cannot be read, zeros."""
    return tuple(map(_stamp_of_file, files))


def _stamp_of_file(path: Path) -> tuple[int, int, int]:
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # ValueError: a zero byte in the path
        return (0, 0, 0)
    return found.st_ino, found.st_mtime_ns, found.st_size
