"""The captions of a dataset's pictures: text files, file names, tables, JSON. No torch.

A caption that cannot be read is a ``DataError`` of its picture alone; a table that cannot be read at all is one of the whole
dataset.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from longcat.errors import DataError
from longcat.problem import Problem
from longcat.storage.interface import Entry
from trainer.config.dataset_options import DatasetConfig
from trainer.config.reading.text_encoding import decode_text
from trainer.data.advice import some
from trainer.data.captions.language import put_before
from trainer.data.captions.shares import Caption, with_shares
from trainer.data.captions.table import LINE_ENDS, Columns, Table, TableParser, captions_in, parsed_json
from trainer.data.captions.text import clean, from_name
from trainer.data.sources import Listing, Source

CAPTION_ENDINGS = frozenset({".txt", ".caption", ".csv", ".tsv", ".json", ".jsonl"})

_TEXT_ENDINGS = (".txt", ".caption")
_LANGUAGE_ENDINGS = (".zh.txt", ".en.txt")
_MOST_CAPTION_BYTES = 2**20
"""Size from which on a file beside a picture is not taken for a caption."""
_TABLE_ENDINGS = {"csv": (".csv", ".tsv"), "jsonl": (".jsonl",), "json": (".json",)}
_IMAGE_FOLDER_TABLES = ("metadata.csv", "metadata.jsonl")
"""Tables of Hugging Face's image folders, each for the pictures in its directory and below."""


class PictureCaptions(NamedTuple):
    """The captions of a picture."""

    texts: tuple[str, ...]
    kinds: tuple[str, ...] = ()
    """The kind of each in ``caption_shares``; empty without shares."""


NO_CAPTIONS = PictureCaptions(())


class CaptionReader:
    """The captions of one dataset's pictures; thread-safe."""

    def __init__(self, config: DatasetConfig, source: Source, listing: Listing) -> None:
        self._config, self._source, self._listing = config, source, listing
        self._columns = Columns.of(config)
        self.dropped: list[tuple[str, Problem]] = []
        """Rows of tables that cannot be used: file and line, and the problem."""
        self.guessed: dict[str, str] = {}
        """Files whose encoding was guessed, and the encoding."""
        self._without_share: list[str] = []
        """Pictures that have captions of kinds without a share, once for each caption."""
        self._tables: tuple[Table, ...] = ()
        strategy = config.caption_strategy
        self._has_table = strategy in ("csv", "jsonl") or (
            strategy == "json" and (bool(config.caption_file) or self._is_one_json())
        )
        if config.only_instance_prompt:
            return
        if self._has_table:
            self._tables = tuple(map(self._read_table, self._find_tables()))
        elif strategy == "textfile":  # an image folder is read as it stands, where a picture has no file of its own
            self._tables = tuple(self._read_table(key) for key in self._image_folder_tables())

    def read(self, key: str) -> PictureCaptions:
        """Return a picture's captions, each once. Raises ``DataError`` if there is none."""
        config = self._config
        if config.only_instance_prompt or config.caption_strategy == "instanceprompt":
            return PictureCaptions((str(config.instance_prompt),))
        captions: dict[object, Caption] = {}
        for text, source in self._captions(key):
            if caption := clean(text):
                captions.setdefault((caption, source if config.shares_by_source else ""), Caption(caption, source))
        if not captions:
            raise self._no_caption()
        kept, kinds = with_shares(list(captions.values()), config)
        self._without_share += [key] * (len(captions) - len(kept))
        if config.prepend_instance_prompt:
            return PictureCaptions(tuple(put_before(str(config.instance_prompt), text) for text, _ in kept), kinds)
        return PictureCaptions(tuple(text for text, _ in kept), kinds)

    def warnings(self) -> Iterator[Problem]:
        """Yield the problems of captions that are used all the same, or belong to no picture that was read."""
        about = {"field": "dataset", "value": self._config.id}
        if self.guessed:
            yield Problem(
                code="captions_not_utf8",
                template="{files}: not UTF-8, read as {encodings}",
                remedy_template="check that the captions are readable",
                details={
                    "files": some(sorted(self.guessed)),
                    "encodings": ", ".join(sorted(set(self.guessed.values()))),
                },
            ).within(**about)
        if self._without_share:
            yield Problem(
                code="captions_without_share",
                template="{count} captions are not used, as they are of no kind in caption_shares: those of {names}",
                details={"count": len(self._without_share), "names": some(sorted(set(self._without_share)))},
            ).within(**about)
        if unused := self.unused():
            yield Problem(
                code="captions_without_picture",
                template="captions of {names} belong to no picture",
                details={"names": some(unused)},
            ).within(**about)

    def unused(self) -> list[str]:
        """Return the rows of tables that belong to no picture that was read."""
        return sorted(
            row for table in self._tables for row in table.captions.keys() - table.used if self._has_table or table.used
        )

    def _captions(self, key: str) -> Iterable[Caption]:
        if self._has_table:
            return self._from_tables(key)
        match self._config.caption_strategy:
            case "filename":
                return from_name(key)
            case "json":
                return self._beside(key, (".json",), self._in_json)
            case _:
                return self._beside(key, _TEXT_ENDINGS, self._in_text)

    def _in_json(self, text: str, ending: str) -> list[Caption]:
        captions = captions_in(parsed_json(text), self._columns)
        return [Caption(text, ending) for text, _ in captions] if self._config.caption_endings else captions

    def _in_text(self, text: str, ending: str) -> list[Caption]:
        as_one = self._config.disable_multiline_split
        return [Caption(line, ending) for line in ([text] if as_one else LINE_ENDS.split(text))]

    def _beside(self, key: str, usual: tuple[str, ...], parse: Callable[[str, str], list[Caption]]) -> list[Caption]:
        """Return the captions in the files of the same name beside a picture: of ``usual`` endings, in the first alone.

        Without any, the text files of each language are read.
        """
        used = self._files_of(key, self._config.caption_endings or _LANGUAGE_ENDINGS)
        if not self._config.caption_endings:
            used = self._files_of(key, usual)[:1] or (used if usual == _TEXT_ENDINGS else [])
        if not used and self._tables:
            return self._from_tables(key)
        if not used:
            stem = str(PurePosixPath(key).with_suffix(""))
            raise DataError(
                "caption_file_missing",
                "no caption: {name} does not exist",
                remedy="write its caption there",
                name=" and ".join(stem + ending for ending in self._config.caption_endings or usual[:1]),
            )
        return [caption for entry, ending in used for caption in self._in_file(entry, ending, parse)]

    def _files_of(self, key: str, endings: Iterable[str]) -> list[tuple[Entry, str]]:
        stem = str(PurePosixPath(key).with_suffix(""))
        files = ((self._listing.find(stem + ending) or self._listing.find(key + ending), ending) for ending in endings)
        return [(entry, ending) for entry, ending in files if entry is not None]

    def _in_file(self, entry: Entry, ending: str, parse: Callable[[str, str], list[Caption]]) -> list[Caption]:
        if entry.size_bytes > _MOST_CAPTION_BYTES:
            raise DataError(
                "caption_file_too_large",
                "no caption: {name} has {size} bytes, too many for a caption",
                name=entry.key,
                size=f"{entry.size_bytes:,}",
            )
        try:
            return parse(self._text(entry.key), ending)
        except DataError as error:
            raise DataError(
                "caption_file_unusable",
                "no caption: {name} cannot be used: {cause}",
                name=entry.key,
                cause=error.problems[0],
            ) from error

    def _text(self, key: str) -> str:
        decoded = decode_text(self._source.read(key))
        if decoded.guessed is not None:
            self.guessed[key] = decoded.guessed
        return decoded.text

    def _from_tables(self, key: str) -> list[Caption]:
        """Return the captions of a picture's rows; the table in the nearest directory is asked first."""
        tables = self._tables
        if len(tables) > 1 or not self._has_table:  # those of an image folder are for their own directories
            tables = tuple(table for table in tables if PurePosixPath(key).is_relative_to(table.folder))
        for table in sorted(tables, key=lambda table: -len(table.folder.parts)):
            if (texts := table.find(key, self._listing)) is not None:
                return texts
        rows = [row for table in tables for row in table.captions]
        names = ", ".join(table.name for table in tables or self._tables)
        if not rows:
            raise DataError("caption_table_empty", "no caption: {table} has no rows", table=names)
        raise DataError(
            "caption_row_missing",
            "no caption: {table} has no row for it; a row of the table is for {row!r}",
            remedy="name pictures by their paths relative to the table",
            table=names,
            row=rows[0],
        )

    def _no_caption(self) -> DataError:
        if self._has_table:
            tables = ", ".join(table.name for table in self._tables)
            return DataError("caption_row_empty", "no caption: its row in {table} has none", table=tables)
        if self._config.caption_strategy == "filename":
            return DataError("caption_name_without_letters", "no caption: its file name has no letters")
        return DataError(
            "caption_file_empty", "no caption: its caption file has none", remedy="write its caption there"
        )

    def _read_table(self, key: str) -> Table:
        folder = self._config.instance_data_dir
        parser = TableParser(key, self._columns, root=Path(folder) if folder else None)
        try:
            table = parser.parse(self._text(key))
        except DataError as error:
            raise error.within(field="caption_file", value=key) from error
        self.dropped += parser.dropped
        return table

    def _is_one_json(self) -> bool:
        """Return whether the only JSON file is of no single picture, so that it is a table of all."""
        paths = [PurePosixPath(entry.key) for entry in self._listing.entries]
        there = [path for path in paths if path.suffix.lower() in _TABLE_ENDINGS["json"]]
        return len(there) == 1 and not any(
            path != there[0] and path.with_suffix("") == there[0].with_suffix("") for path in paths
        )

    def _image_folder_tables(self) -> list[str]:
        return [e.key for e in self._listing.entries if PurePosixPath(e.key).name.lower() in _IMAGE_FOLDER_TABLES]

    def _find_tables(self) -> list[str]:
        """Return the configured table, or else all of an image folder, or the only file of the strategy's kind."""
        config = self._config
        endings = _TABLE_ENDINGS[config.caption_strategy]
        if config.caption_file:
            return [self._key_of(config.caption_file)]
        there = [entry.key for entry in self._listing.entries if PurePosixPath(entry.key).suffix.lower() in endings]
        if len(there) == 1 or (there and not set(there).difference(self._image_folder_tables())):
            return there
        if not there:
            raise DataError(
                "caption_table_missing",
                "dataset {dataset!r} has no file for it in {uri}",
                remedy="name the file in caption_file",
                field="caption_strategy",
                value=config.caption_strategy,
                dataset=config.id,
                uri=config.uri,
            )
        raise DataError(
            "caption_table_ambiguous",
            "dataset {dataset!r} has {count} files for it: {names}",
            remedy="name the file in caption_file",
            field="caption_strategy",
            value=config.caption_strategy,
            dataset=config.id,
            count=len(there),
            names=", ".join(there[:5]),
        )

    def _key_of(self, file: str) -> str:
        """Return the key of ``caption_file``: its path from the dataset's directory, or an absolute one inside it."""
        if self._config.instance_data_dir and Path(file).is_absolute():
            root = Path(self._config.instance_data_dir)
            file = next(
                (Path(file).relative_to(folder).as_posix() for folder in (root.absolute(), root.resolve())
                 if Path(file).is_relative_to(folder)), file
            )  # fmt: skip
        found = self._listing.find(str(PurePosixPath(file)))
        if found is None:
            raise DataError(
                "caption_file_not_in_dataset",
                "not a file of dataset {dataset!r}, {uri}",
                remedy="copy it there, and give its path from that directory",
                field="caption_file",
                value=file,
                dataset=self._config.id,
                uri=self._config.uri,
            )
        return found.key
