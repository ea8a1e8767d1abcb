"""What earlier scans learnt of pictures, so that the next opens none that has not changed. No torch."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import PIL

from longcat.storage import Entry
from trainer.atomic import write_atomically
from trainer.pictures import PictureFacts

_FORMAT = 1


class Index:
    """Facts by source and key, valid while a file's size and mark stay."""

    def __init__(self, path: Path | None, *, max_pixels: int) -> None:
        self._path = path
        self._header = {"format": _FORMAT, "pillow": PIL.__version__, "max_pixels": max_pixels}
        """What is remembered under another is forgotten: another Pillow reads other files."""
        self._sources: dict[str, dict[str, Any]] = {} if path is None else _read(path, self._header)

    def find(self, source: str, entry: Entry) -> PictureFacts | None:
        """What is known of a file, if it is what it was."""
        known = self._sources.get(source, {}).get(entry.key)
        try:
            if known is None or (known["size"], known["mark"]) != (entry.size_bytes, entry.etag):
                return None
            return PictureFacts(**known["facts"])
        except (KeyError, TypeError):  # written by someone else; it is learnt again
            return None

    def remember(self, source: str, facts: dict[Entry, PictureFacts]) -> None:
        """All that is known of a source from now on."""
        self._sources[source] = {
            entry.key: {"size": entry.size_bytes, "mark": entry.etag, "facts": asdict(found)}
            for entry, found in facts.items()
        }

    def write(self) -> None:
        """Onto disk, whole."""
        if self._path is not None:
            said = json.dumps({**self._header, "sources": self._sources})
            write_atomically(self._path, said.encode())


def _read(path: Path, header: dict[str, object]) -> dict[str, dict[str, Any]]:
    """What a file remembers; nothing if it is missing, damaged, or was written under other conditions."""
    try:
        said = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(said, dict) or {key: said.get(key) for key in header} != header:
        return {}
    sources = said.get("sources")
    if not isinstance(sources, dict):
        return {}
    return {name: known for name, known in sources.items() if isinstance(known, dict)}
