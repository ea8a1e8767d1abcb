"""A zip that is written while it is sent: hundreds of pictures in the memory of one."""

import io
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from typing_extensions import override


class _Outgoing(io.RawIOBase):
    """Bytes that were written and not yet taken. It cannot seek, so that the zip carries sizes behind its files."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    @override
    def writable(self) -> bool:
        return True

    @override
    def write(self, content: bytes, /) -> int:  # type: ignore[override]  # the base class takes any buffer
        self._bytes += content
        return len(content)

    def take(self) -> bytes:
        taken = bytes(self._bytes)
        self._bytes.clear()
        return taken


def zipped(files: Iterable[tuple[str, Path]]) -> Iterator[bytes]:
    """Yield a zip of named files, stored: pictures are compressed already. A file that was deleted meanwhile is left out."""
    outgoing = _Outgoing()
    with zipfile.ZipFile(outgoing, "w", zipfile.ZIP_STORED) as archive:
        for name, path in files:
            try:
                content = path.read_bytes()
            except FileNotFoundError:
                continue
            archive.writestr(name, content)
            yield outgoing.take()
    yield outgoing.take()
