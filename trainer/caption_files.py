"""Where captions are read from: text files, file names, tables, JSON. No torch.

A caption that cannot be had is a ``DataError`` with the reason, for its picture alone; a table that cannot be read at all is
one for the whole dataset.
"""

import codecs
import csv
import io
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any

from longcat.errors import DataError
from trainer.captions import put_before
from trainer.dataset_config import DatasetConfig
from trainer.sources import Listing, Source, same_name

CAPTION_ENDINGS = frozenset({".txt", ".csv", ".tsv", ".json", ".jsonl"})

_MOST_CAPTION_BYTES = 2**20
"""A longer file beside a picture is no caption."""
_LINE_ENDS = re.compile(r"\r\n|\r|\n|\u2028|\u2029")
_INVISIBLE_ENDS = re.compile(r"^[\s\ufeff\u200b\0]+|[\s\ufeff\u200b\0]+$")
_CHINESE = re.compile(r"[\u3000-\u303f\u3400-\u9fff\uff00-\uffef\u2010-\u2026·]")
"""Characters, and the punctuation between them."""
_SCRIPTS = {"LATIN", "CYRILLIC", "GREEK", "HEBREW", "ARABIC", "ARMENIAN", "SYRIAC", "THAANA", "NKO"}
"""Of two-byte characters in UTF-8, as Unicode's names begin."""
_BOMS = {
    codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
_TABLE_ENDINGS = {"csv": (".csv", ".tsv"), "jsonl": (".jsonl",), "json": (".json",)}


class CaptionReader:
    """The captions of one dataset's pictures. Safe to be used by several threads."""

    def __init__(self, config: DatasetConfig, source: Source, listing: Listing) -> None:
        self._config, self._source, self._listing = config, source, listing
        self.dropped: list[tuple[str, str]] = []
        """Rows of the table that cannot be used: where, and why."""
        self.guessed: set[str] = set()
        """Files that are not UTF-8 and were taken for GB18030."""
        self._table: dict[str, list[str]] | None = None
        self._name_of_table = ""
        self._names = Counter(same_name(PurePosixPath(entry.key).name) for entry in listing.entries)
        self._used: set[str] = set()
        needs_table = config.caption_strategy in ("csv", "jsonl") or (
            config.caption_strategy == "json" and config.caption_file
        )
        if needs_table and not config.only_instance_prompt:
            self._table = self._read_table()

    def read(self, key: str) -> tuple[str, ...]:
        """A picture's captions, each once. Raises ``DataError`` if there is none."""
        config = self._config
        if config.only_instance_prompt or config.caption_strategy == "instanceprompt":
            return (str(config.instance_prompt),)
        captions = tuple(dict.fromkeys(filter(None, (_clean(text) for text in self._texts(key)))))
        if not captions:
            raise DataError(f"has no caption: {self._where()} has none for it")
        if config.prepend_instance_prompt:
            captions = tuple(put_before(str(config.instance_prompt), caption) for caption in captions)
        return captions

    def unused(self) -> list[str]:
        """Rows of the table that belong to no picture that was asked for."""
        return sorted(set(self._table or ()) - self._used)

    def _texts(self, key: str) -> Iterable[str]:
        if self._table is not None:
            return self._from_table(key)
        match self._config.caption_strategy:
            case "filename":
                return _from_name(key)
            case "json":
                return _texts_of(_parsed(self._beside(key, ".json")), self._config.caption_column)
            case _:
                text = self._beside(key, ".txt")
                return (text,) if self._config.disable_multiline_split else _LINE_ENDS.split(text)

    def _beside(self, key: str, ending: str) -> str:
        """The text file of the same name beside a picture."""
        name = str(PurePosixPath(key).with_suffix(ending))
        entry = self._listing.find(name) or self._listing.find(key + ending)
        if entry is None:
            raise DataError(f"has no caption: {name} is not there")
        if entry.size_bytes > _MOST_CAPTION_BYTES:
            raise DataError(f"has no caption: {entry.key} has {entry.size_bytes:,} bytes, too many for one")
        try:
            return self._text(entry.key)
        except DataError as error:
            raise DataError(f"has no caption: {entry.key} {error}") from error

    def _text(self, key: str) -> str:
        text, was_guessed = decode_text(self._source.read(key))
        if was_guessed:
            self.guessed.add(key)
        return text

    def _from_table(self, key: str) -> Iterable[str]:
        assert self._table is not None
        path, name = same_name(key), same_name(PurePosixPath(key).name)
        found = path if path in self._table else name
        if found not in self._table:
            raise DataError(f"has no caption: {self._name_of_table} has no row for it")
        self._used.add(found)
        if found != path and self._names[name] > 1:
            raise DataError(
                f"has no caption: {self._name_of_table} names {name}, of which there are {self._names[name]}; give their "
                "directories too"
            )
        return self._table[found]

    def _where(self) -> str:
        if self._table is not None:
            return self._name_of_table
        return "its name" if self._config.caption_strategy == "filename" else "its caption file"

    def _read_table(self) -> dict[str, list[str]]:
        """Captions by the pictures' names."""
        self._name_of_table = name = self._find_table()
        said = f"dataset {self._config.id!r} caption_file {name}"
        try:
            text = self._text(name)
            rows = list(self._rows(text, name))
        except DataError as error:
            raise DataError(f"{said} {error}") from error
        table: dict[str, list[str]] = {}
        for picture, captions in rows:
            table.setdefault(same_name(_relative(picture)), []).extend(captions)
        return table

    def _find_table(self) -> str:
        config = self._config
        endings = _TABLE_ENDINGS[config.caption_strategy]
        there = [entry.key for entry in self._listing.entries if PurePosixPath(entry.key).suffix.lower() in endings]
        if config.caption_file:
            found = self._listing.find(config.caption_file)
            return found.key if found else config.caption_file
        if len(there) == 1:
            return there[0]
        some = f"there are {len(there)} ({', '.join(there[:5])})" if there else "there is none"
        raise DataError(
            f"dataset {config.id!r} caption_strategy {config.caption_strategy}: {some} in {config.uri}; name the one in "
            "caption_file"
        )

    def _rows(self, text: str, name: str) -> Iterator[tuple[str, list[str]]]:
        match self._config.caption_strategy:
            case "csv":
                yield from self._rows_of_csv(text)
            case "jsonl":
                for number, line in enumerate(_LINE_ENDS.split(text), 1):
                    if line.strip():
                        yield from self._row_of_line(line, f"{name} line {number}")
            case _:
                yield from self._rows_of_json(_parsed(text))

    def _rows_of_csv(self, text: str) -> Iterator[tuple[str, list[str]]]:
        picture, caption = self._config.filename_column, self._config.caption_column
        header = _LINE_ENDS.split(text, maxsplit=1)[0]
        delimiter = max(",\t;", key=header.count)
        rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
        try:
            columns = [str(column).strip() for column in rows.fieldnames or ()]
            rows.fieldnames = columns
            for column in (picture, caption):
                if column not in columns:
                    raise DataError(
                        f"has no column {column!r}; it has {', '.join(columns) or 'none'}: say which in filename_column "
                        "and caption_column"
                    )
            for row in rows:
                where = f"{self._name_of_table} line {rows.line_num}"
                if not row[picture]:
                    self.dropped.append((where, f"names no picture in column {picture!r}"))
                elif row.get(None):
                    self.dropped.append((where, "has more cells than columns: put captions with commas in quotes"))
                else:
                    yield row[picture], [row[caption] or ""]
        except csv.Error as error:
            raise DataError(f"is no table that can be read, at line {rows.line_num}: {error}") from error

    def _row_of_line(self, line: str, where: str) -> Iterator[tuple[str, list[str]]]:
        try:
            row = _parsed(line)
        except DataError as error:
            self.dropped.append((where, str(error)))
            return
        yield from self._row_of_json(row, where)

    def _row_of_json(self, row: Any, where: str) -> Iterator[tuple[str, list[str]]]:
        try:
            if not isinstance(row, dict) or not isinstance(row.get(self._config.filename_column), str):
                raise DataError(f"has no {self._config.filename_column!r} that names a picture: set filename_column")
            yield row[self._config.filename_column], _texts_of(row, self._config.caption_column)
        except DataError as error:
            self.dropped.append((where, str(error)))

    def _rows_of_json(self, said: Any) -> Iterator[tuple[str, list[str]]]:
        """A list of objects that name their picture, or an object by pictures' names."""
        if isinstance(said, list):
            for number, row in enumerate(said, 1):
                yield from self._row_of_json(row, f"{self._name_of_table} item {number}")
        elif isinstance(said, dict):
            for picture, row in said.items():
                try:
                    yield picture, _texts_of(row, self._config.caption_column)
                except DataError as error:
                    self.dropped.append((f"{self._name_of_table} {picture!r}", str(error)))
        else:
            raise DataError("holds neither a list nor an object")


def decode_text(content: bytes) -> tuple[str, bool]:
    """Text in whatever encoding it has, and whether that was a guess. Raises ``DataError`` if it has none known."""
    for bom, encoding in _BOMS.items():
        if content.startswith(bom):
            try:
                return content.decode(encoding), False
            except UnicodeDecodeError as error:
                raise DataError(f"starts as {encoding} and does not go on so, at byte {error.start}") from error
    if b"\0" in content:
        raise DataError("is no text: it holds zero bytes; save it as UTF-8")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        try:
            return content.decode("gb18030"), True
        except UnicodeDecodeError as error:
            raise DataError("is neither UTF-8 nor GB18030; save it as UTF-8") from error
    return (content.decode("gb18030"), True) if _is_rather_gb18030(text) else (text, False)


def _is_rather_gb18030(text: str) -> bool:
    """Whether a text that can be UTF-8 is Chinese in GB18030 nevertheless: 一只猫 in the one is һֻè in the other.

    Only two-byte characters are in question. Read wrongly, they mix scripts, or are accented letters without plain ones.
    """
    beyond = [char for char in text if not char.isascii()]
    if not beyond or max(beyond) > "\u07ff":
        return False
    scripts = _SCRIPTS & {unicodedata.name(char, "").partition(" ")[0] for char in beyond}
    if len(scripts) < 2 and not (scripts == {"LATIN"} and not re.search("[A-Za-z]", text)):
        return False
    try:
        otherwise = text.encode().decode("gb18030")
    except UnicodeDecodeError:
        return False
    return all(_CHINESE.match(char) for char in otherwise if not char.isascii())


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"is not JSON: {error}") from error


def _texts_of(said: Any, column: str) -> list[str]:
    """A text, a list of texts, or an object with either under the column."""
    if isinstance(said, dict):
        if column not in said:
            raise DataError(f"has no {column!r}; it has {', '.join(map(str, said)) or 'nothing'}: set caption_column")
        said = said[column]
    if said is None:
        return []
    texts = said if isinstance(said, list) else [said]
    wrong = next((text for text in texts if not isinstance(text, str)), None)
    if wrong is not None:
        raise DataError(f"has {str(wrong)[:40]!r} for a caption; give a text, or a list of texts")
    return texts


def _from_name(key: str) -> tuple[str, ...]:
    """The file's name without its ending; underscores are spaces. A name without a letter says nothing."""
    text = PurePosixPath(key).stem.replace("_", " ")
    return (text,) if re.search(r"[^\W\d_]", text) else ()


def _clean(text: str) -> str:
    """Without what cannot be seen at its ends. Raises ``DataError`` if it is no Unicode text."""
    text = _INVISIBLE_ENDS.sub("", text)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"has a caption that is no Unicode text, at character {error.start}") from error
    return "\n".join(_LINE_ENDS.split(text))


def _relative(name: str) -> str:
    """A picture's name in a table as a key, also when it was written on Windows."""
    return str(PurePosixPath(name.strip().replace("\\", "/")))
