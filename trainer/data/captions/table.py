"""Tables of captions: CSV, JSON lines and JSON, whose rows name pictures in one of the usual ways. No torch.

A row names its picture by a path relative to the table or to the dataset, by an absolute path inside the dataset, by the
file's name alone where that is unique, or by any of them without the ending, as sd-scripts' metadata does.
"""

import csv
import io
import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from longcat.errors import DataError
from longcat.problem import Problem
from trainer.config.dataset_options import DatasetConfig
from trainer.data.captions.shares import Caption
from trainer.data.sources import Listing, same_name

LINE_ENDS = re.compile(r"\r\n|\r|\n|\u2028|\u2029")

_PICTURE_COLUMNS = ("filename", "file_name", "image", "image_path", "file", "path")
"""Names of the picture's column, where ``filename_column`` is not set; Hugging Face's is file_name."""
_CAPTION_COLUMNS = ("caption", "text", "prompt", "tags")
"""Names of the caption's column, where ``caption_column`` is not set."""
_ABSOLUTE = re.compile(r"/|[A-Za-z]:/")


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The names under which a table's rows may have the picture and its caption, the likeliest first."""

    pictures: tuple[str, ...]
    captions: tuple[str, ...]
    has_all: bool = False
    """True if every one of ``captions`` is a column of the table, not the first alone."""

    @classmethod
    def of(cls, config: DatasetConfig) -> "Columns":
        """Return the configured names; without one, the usual names."""
        given, column = config.model_fields_set, config.caption_column
        given_columns = (column,) if isinstance(column, str) else column
        return cls(
            pictures=(config.filename_column,) if "filename_column" in given else _PICTURE_COLUMNS,
            captions=given_columns if "caption_column" in given else _CAPTION_COLUMNS,
            has_all=isinstance(config.caption_column, tuple),
        )


@dataclass(kw_only=True)
class Table:
    """The captions of one table's rows."""

    name: str
    """Its key in the dataset."""
    captions: dict[str, list[Caption]]
    """Captions by the row's name for its picture, in the form of ``same_name``."""
    used: set[str] = field(default_factory=set)
    """Rows that belong to a picture that was read."""

    @property
    def folder(self) -> PurePosixPath:
        """The table's directory."""
        return PurePosixPath(self.name).parent

    def find(self, key: str, listing: Listing) -> list[Caption] | None:
        """Return the captions of a picture, or None if no row names it.

        Raises ``DataError`` if its row gives a file's name that several pictures have.
        """
        for row in self._names_of(key, listing):
            if row in self.captions:
                self.used.add(row)
                return self.captions[row]
        for row in (same_name(PurePosixPath(key).name), same_name(PurePosixPath(key).stem)):
            if row in self.captions:
                self.used.add(row)
                if (count := listing.count(row)) > 1:
                    raise DataError(
                        "caption_row_ambiguous",
                        "no caption: {table} names {name}, and {count} files have that name",
                        remedy="give their directories too",
                        table=self.name,
                        name=row,
                        count=count,
                    )
                return self.captions[row]
        return None

    def _names_of(self, key: str, listing: Listing) -> Iterator[str]:
        """Yield the paths by which a row may name a picture: relative to the table, then to the dataset."""
        path = PurePosixPath(key)
        paths = [path]
        if path.is_relative_to(self.folder):
            paths.insert(0, path.relative_to(self.folder))
        for candidate in paths:
            # A path that names a picture beside the table means that one, not one at the same path from the root.
            if candidate == path and listing.find(str(self.folder / candidate)) not in (None, listing.find(key)):
                continue
            yield same_name(str(candidate))
            yield same_name(str(candidate.with_suffix("")))


class TableParser:
    """The parser of one table."""

    def __init__(self, name: str, columns: Columns, *, root: Path | None) -> None:
        """``root`` is the dataset's directory, to which absolute paths are relative; None for a bucket."""
        self._name, self._columns = name, columns
        self._roots = [] if root is None else [root.absolute(), root.resolve()]
        self.dropped: list[tuple[str, Problem]] = []
        """Rows that cannot be used: file and line, and the problem."""

    def parse(self, text: str) -> Table:
        """Parse the table's text by its ending. Raises ``DataError`` if it is no table."""
        captions: dict[str, list[Caption]] = {}
        for picture, texts in self._rows(text):
            captions.setdefault(same_name(self._relative(picture)), []).extend(texts)
        return Table(name=self._name, captions=captions)

    def _rows(self, text: str) -> Iterator[tuple[str, list[Caption]]]:
        match PurePosixPath(self._name).suffix.lower():
            case ".jsonl":
                for number, line in enumerate(LINE_ENDS.split(text), 1):
                    if line.strip():
                        yield from self._row_of_line(line, f"{self._name} line {number}")
            case ".json":
                yield from self._rows_of_json(parsed_json(text))
            case _:
                yield from self._rows_of_csv(text)

    def _rows_of_csv(self, text: str) -> Iterator[tuple[str, list[Caption]]]:
        header = LINE_ENDS.split(text, maxsplit=1)[0]
        delimiter = max(",\t;", key=header.count)
        rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
        try:
            columns = [str(column).strip() for column in rows.fieldnames or ()]
            rows.fieldnames = columns
            picture, captions = _column(self._columns.pictures, columns), self._caption_columns(columns)
            for row in rows:
                where = f"{self._name} line {rows.line_num}"
                if not row[picture]:
                    self._drop(
                        where, DataError("caption_row_unnamed", "no picture in column {column!r}", column=picture)
                    )
                elif row.get(None):
                    self._drop(where, DataError(
                        "caption_row_too_long", "more cells than columns", remedy="put captions with commas in quotes"
                    ))  # fmt: skip
                else:
                    yield row[picture], [Caption(row[name] or "", name) for name in captions]
        except csv.Error as error:
            raise DataError(
                "caption_table_damaged",
                "not a readable table, at line {line}: {cause}",
                line=rows.line_num,
                cause=str(error),
            ) from error

    def _caption_columns(self, columns: Sequence[str]) -> list[str]:
        if not self._columns.has_all:
            return [_column(self._columns.captions, columns)]
        return [_column((name,), columns) for name in self._columns.captions]

    def _row_of_line(self, line: str, where: str) -> Iterator[tuple[str, list[Caption]]]:
        try:
            row = parsed_json(line)
        except DataError as error:
            self._drop(where, error)
            return
        yield from self._row_of_json(row, where)

    def _row_of_json(self, row: Any, where: str) -> Iterator[tuple[str, list[Caption]]]:
        try:
            names = _present(self._columns.pictures, row) if isinstance(row, dict) else []
            if not names or not isinstance(row[names[0]], str):
                raise DataError(
                    "caption_key_of_picture_missing",
                    "no {key!r} that names a picture",
                    remedy="set filename_column",
                    key=self._columns.pictures[0],
                )
            yield row[names[0]], captions_in(row, self._columns)
        except DataError as error:
            self._drop(where, error)

    def _rows_of_json(self, parsed: Any) -> Iterator[tuple[str, list[Caption]]]:
        """Yield the rows of a list of objects that name their picture, or of an object by pictures' names."""
        if isinstance(parsed, list):
            for number, row in enumerate(parsed, 1):
                yield from self._row_of_json(row, f"{self._name} item {number}")
        elif isinstance(parsed, dict):
            for picture, row in parsed.items():
                try:
                    yield picture, captions_in(row, self._columns)
                except DataError as error:
                    self._drop(f"{self._name} {picture!r}", error)
        else:
            raise DataError("caption_table_not_list", "neither a list nor an object")

    def _drop(self, where: str, error: DataError) -> None:
        self.dropped.append((where, error.problems[0]))

    def _relative(self, name: str) -> str:
        """Return a row's path with slashes, relative to the dataset if it is inside; of a path elsewhere, the name alone."""
        path = PurePosixPath(name.strip().replace("\\", "/"))
        if not _ABSOLUTE.match(str(path)):
            return str(path)
        inside = (path.relative_to(root) for root in self._roots if path.is_relative_to(root))
        return str(next(inside, PurePosixPath(path.name)))


def parsed_json(text: str) -> Any:
    """Parse JSON. Raises ``DataError``, also for a key that an object has twice, of which JSON's parsers keep the last."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise DataError("caption_not_json", "not JSON: {cause}", cause=str(error)) from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        raise DataError(
            "caption_key_twice",
            "gives {key!r} twice",
            remedy="leave out one of the two, or give a list of captions",
            key=next(key for key in keys if keys.count(key) > 1),
        )
    return dict(pairs)


def captions_in(parsed: Any, columns: Columns) -> list[Caption]:
    """Return the captions of a text, a list of texts, or an object with either under the caption's names."""
    if not isinstance(parsed, dict):
        return [Caption(text) for text in _texts(parsed)]
    names = _present(columns.captions, parsed)
    if not names:
        raise DataError(
            "caption_key_missing",
            "no {key!r} among its keys {keys}",
            remedy="set caption_column",
            key=columns.captions[0],
            keys=", ".join(map(str, parsed)),
        )
    return [Caption(text, name) for name in names[: None if columns.has_all else 1] for text in _texts(parsed[name])]


def _texts(parsed: Any) -> list[str]:
    """Return a text, or each of a list of texts."""
    if parsed is None:
        return []
    texts = parsed if isinstance(parsed, list) else [parsed]
    if wrong := [text for text in texts if not isinstance(text, str)]:
        raise DataError(
            "caption_not_text",
            "caption {caption!r} is not text",
            remedy="give a text, or a list of texts",
            caption=str(wrong[0])[:40],
        )
    return texts


def _present(names: Sequence[str], keys: Collection[str]) -> list[str]:
    """Return the keys that have one of these names, in the order of the names: as they stand, else in another case."""
    in_other_case = {key.strip().casefold().replace(" ", "_"): key for key in keys}
    found = [name if name in keys else in_other_case.get(name.casefold()) for name in names]
    return [key for key in found if key is not None]


def _column(names: Sequence[str], columns: Sequence[str]) -> str:
    found = _present(names, columns)
    if not found:
        raise DataError(
            "caption_column_missing",
            "no column {column!r} among its columns {columns}",
            remedy="set filename_column and caption_column",
            column=names[0],
            columns=", ".join(columns),
        )
    return found[0]
