"""Captions changed in bulk, and each change undone. No torch.

A change is a file of JSON lines below the studio's home: first what it is, then a line for each caption file with its
content before and after. It is written whole before the first caption file is touched, and each of those is replaced as a
whole, so that a change that was cut short can be undone, too.
"""

import hashlib
import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from longcat.errors import DataError
from longcat.problem import Problem
from longcat.storage.atomic import write_atomically
from longcat.validation import ProblemValueError
from studio.datasets.captions import caption_file, caption_lines, read_captions
from trainer.data.captions.compose import with_trigger_words
from trainer.data.captions.language import detect_language

_KEPT_CHANGES = 20
_MOST_CHARACTERS = 500

Action = Literal["replace", "prepend", "append"]
_Text = Annotated[str, Field(max_length=_MOST_CHARACTERS)]


class CaptionEdit(BaseModel):
    """A change of captions: each line of a caption file is a caption."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    action: Action
    find: _Text = ""
    """Text that ``replace`` looks for, as it is written."""
    text: _Text = ""
    """Text that stands for it, or is put before or after; a caption that has it already stays as it is."""

    @model_validator(mode="after")
    def _is_whole(self) -> "CaptionEdit":
        missing = "find" if self.action == "replace" and not self.find else "text"
        if missing == "find" or (self.action != "replace" and not self.text):
            raise ProblemValueError(
                Problem(code="blank", template="blank", remedy_template="give some text", field=missing)
            )
        return self

    def apply(self, text: str) -> str:
        """Return the captions after the change."""
        return "\n".join(filter(None, (self._line(line) for line in text.splitlines())))

    def _line(self, line: str) -> str:
        if self.action == "replace":
            return line.replace(self.find, self.text).strip()
        if self.action == "prepend":
            return with_trigger_words(line, (self.text,))
        if self.text.casefold() in line.casefold():
            return line
        return f"{line.rstrip(' ,，.。')}{'，' if detect_language(line) == 'zh' else ', '}{self.text}"


@dataclass(frozen=True, kw_only=True)
class Change:
    """A change that can be undone."""

    id: str
    made: datetime
    action: Literal["replace", "prepend", "append", "describe"]
    find: str
    text: str
    files: int
    """Caption files that it changed."""


class CaptionHistory:
    """The changes of one dataset's captions, the newest last."""

    def __init__(
        self, folder: Path, dataset: Path, allowed: Callable[[Path], Path], on_change: Callable[[], None]
    ) -> None:
        """``folder``: of all datasets' changes. ``allowed`` raises ``DataError`` for a path that may not be read.

        ``on_change`` is called after captions were written.
        """
        digest = hashlib.sha256(str(dataset).encode("utf-8", "surrogateescape")).hexdigest()[:24]
        self._folder = folder / digest
        self._dataset, self._allowed, self._on_change = dataset, allowed, on_change

    def change(self, pictures: Iterable[Path], edit: CaptionEdit) -> int:
        """Apply an edit to the captions of pictures; return how many files changed. Raises ``StorageError``.

        Raises ``DataError``, before anything is written, for a caption file that cannot be read.
        """
        lines = []
        for picture in pictures:
            self._allowed(caption_file(picture))  # a link may lead out of the folders that the operator allows
            text = read_captions(picture)
            if text and (edited := edit.apply(text)) != text:
                path = caption_file(picture)
                lines.append(self._line(path, path.read_bytes(), caption_lines(edited)))
        if lines:
            self._write({"action": edit.action, "find": edit.find, "text": edit.text}, lines)
            for line in lines:
                write_atomically(self._dataset / line["file"], line["after"].encode())
            self._on_change()
        return len(lines)

    def recording(self, action: Literal["describe"], text: str) -> Callable[[Path], None]:
        """Begin a change whose files are new: call the result with each one that was written."""
        self._write({"action": action, "find": "", "text": text}, [])
        record = self._paths()[-1]

        def note(path: Path) -> None:
            with record.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(self._line(path, None, path.read_bytes())) + "\n")
            self._on_change()

        return note

    def list(self) -> Sequence[Change]:
        """Return the changes, the newest first; one that changed nothing is left out."""
        found = (self._read(path) for path in reversed(self._paths()))
        return [
            Change(
                id=path.stem, made=datetime.fromisoformat(head["made"]), action=head["action"], find=head["find"],
                text=head["text"], files=len(lines),
            )
            for path, head, lines in found
            if lines
        ]  # fmt: skip

    def undo(self, identity: str) -> tuple[int, int]:
        """Undo a change; return how many files are as before, and how many were edited since and so left alone.

        Raises ``DataError`` if there is no such change, ``StorageError`` if the disk refuses.
        """
        path = next((path for path in self._paths() if path.stem == identity), None)
        if path is None:
            raise DataError("caption_change_gone", "the change was undone already", field="change", value=identity)
        _, _, lines = self._read(path)
        undone = sum(self._restore(line) for line in lines)
        path.unlink()
        self._on_change()
        return undone, len(lines) - undone

    def _restore(self, line: dict[str, Any]) -> bool:
        path = self._dataset / line["file"]
        now = path.read_bytes().decode("utf-8", "surrogateescape") if path.exists() else None
        if now not in (line["after"], line["before"]):
            return False
        if line["before"] is None:
            path.unlink(missing_ok=True)
        elif now != line["before"]:
            write_atomically(path, line["before"].encode("utf-8", "surrogateescape"))
        return True

    def _line(self, path: Path, before: bytes | None, after: bytes) -> dict[str, Any]:
        return {
            "file": path.relative_to(self._dataset).as_posix(),
            "before": None if before is None else before.decode("utf-8", "surrogateescape"),
            "after": after.decode("utf-8", "surrogateescape"),
        }

    def _write(self, head: dict[str, str], lines: Sequence[dict[str, Any]]) -> None:
        now = datetime.now(UTC)
        path = self._folder / f"{now:%Y%m%d%H%M%S%f}-{secrets.token_hex(2)}.jsonl"
        content = "".join(json.dumps(line) + "\n" for line in (head | {"made": now.isoformat()}, *lines))
        write_atomically(path, content.encode())
        for old in self._paths()[:-_KEPT_CHANGES]:
            old.unlink(missing_ok=True)

    def _paths(self) -> Sequence[Path]:
        return sorted(self._folder.glob("*.jsonl"))

    def _read(self, path: Path) -> tuple[Path, dict[str, Any], Sequence[dict[str, Any]]]:
        head, *lines = path.read_text(encoding="utf-8").splitlines()
        return path, json.loads(head), [*_whole(lines)]


def _whole(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield the lines up to one that a crash has cut short."""
    with suppress(ValueError):
        for line in lines:
            yield json.loads(line)
