"""Opening of regular files alone. No torch."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


class NotRegularError(OSError):
    """A path holds a pipe, a device, a socket or a directory."""


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading. Opening a device can change it, and opening a pipe can wait for its writer.

    Raises ``NotRegularError``, or ``OSError``.
    """
    if stat.S_ISREG(path.stat().st_mode):
        stream = os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY), "rb")
        if stat.S_ISREG(os.fstat(stream.fileno()).st_mode):  # not replaced meanwhile
            return stream
        stream.close()
    raise NotRegularError(errno.EINVAL, "it is not a regular file", str(path))
