"""The index of picture facts from earlier scans, so that a scan decodes only pictures that have changed. No torch."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import PIL

from longcat.problem import Problem
from longcat.storage.atomic import write_atomically
from longcat.storage.interface import Entry
from trainer.data.pictures import PictureFacts

_FORMAT = 2


class Index:
    """Picture facts by source and key, valid while a file's size and etag are unchanged."""

    def __init__(self, path: Path | None, *, max_pixels: int) -> None:
        self._path = path
        self._header = {"format": _FORMAT, "pillow": PIL.__version__, "max_pixels": max_pixels}
        """An index with another header is discarded: another Pillow decodes other files."""
        self._sources: dict[str, dict[str, Any]] = {} if path is None else _read(path, self._header)

    def find(self, source: str, entry: Entry) -> PictureFacts | None:
        """Return the facts of a file; None if it is unknown or has changed."""
        known = self._sources.get(source, {}).get(entry.key)
        try:
            if known is None or (known["size"], known["mark"]) != (entry.size_bytes, entry.etag):
                return None
            problem = known["facts"]["problem"]
            return PictureFacts(**{**known["facts"], "problem": problem and Problem.from_json(problem)})
        except (KeyError, TypeError):  # not written by this code: the picture is decoded again
            return None

    def store(self, source: str, facts: dict[Entry, PictureFacts]) -> None:
        """Replace the facts of a source."""
        self._sources[source] = {
            entry.key: {"size": entry.size_bytes, "mark": entry.etag, "facts": _to_json(found)}
            for entry, found in facts.items()
        }

    def write(self) -> None:
        """Write the index to disk atomically."""
        if self._path is not None:
            text = json.dumps({**self._header, "sources": self._sources})
            write_atomically(self._path, text.encode())


def _to_json(facts: PictureFacts) -> dict[str, Any]:
    return {**asdict(facts), "problem": facts.problem and facts.problem.to_json()}


def _read(path: Path, header: dict[str, object]) -> dict[str, dict[str, Any]]:
    """Read an index; empty if the file is missing, damaged, or has another header."""
    try:
        parsed = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(parsed, dict) or {key: parsed.get(key) for key in header} != header:
        return {}
    sources = parsed.get("sources")
    if not isinstance(sources, dict):
        return {}
    return {name: known for name, known in sources.items() if isinstance(known, dict)}
