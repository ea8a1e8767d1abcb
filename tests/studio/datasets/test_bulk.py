"""Captions changed in bulk: what an edit does, how it is undone, which pictures a filter keeps."""

from pathlib import Path

import pytest

from longcat.errors import ConfigError, DataError, StorageError
from longcat.storage.atomic import write_atomically
from longcat.validation import ProblemValueError
from studio.datasets.bulk import CaptionEdit, CaptionHistory
from studio.datasets.filters import CaptionedPicture, Filter, Kind, tag_counts


@pytest.fixture
def cats(tmp_path: Path) -> Path:
    folder = tmp_path / "cats"
    folder.mkdir()
    for name, caption in (("a", "a cat, old"), ("b", "一只猫"), ("c", "old dog\nan old cat")):
        (folder / f"{name}.txt").write_text(f"{caption}\n", encoding="utf-8")
    return folder


def history_of(folder: Path) -> CaptionHistory:
    return CaptionHistory(folder.parent / "changes", folder, lambda path: path, lambda: None)


def pictures(folder: Path) -> list[Path]:
    return [folder / f"{name}.png" for name in "abcd"]  # d has no caption


def texts(folder: Path) -> dict[str, str]:
    return {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.txt")}


@pytest.mark.parametrize(
    ("edit", "before", "after"),
    [
        (CaptionEdit(action="replace", find="old", text="young"), "an old cat, old", "an young cat, young"),
        (CaptionEdit(action="replace", find="old", text=""), "old\nold cat", "cat"),
        (CaptionEdit(action="prepend", text="sks"), "a cat\n一只猫", "sks, a cat\nsks，一只猫"),
        (CaptionEdit(action="prepend", text="sks"), "a sks cat", "a sks cat"),
        (CaptionEdit(action="append", text="ink style"), "a cat.\n一只猫。", "a cat, ink style\n一只猫，ink style"),
        (CaptionEdit(action="append", text="ink style"), "Ink Style cat", "Ink Style cat"),
    ],
)
def test_an_edit_changes_each_caption(edit: CaptionEdit, before: str, after: str) -> None:
    assert edit.apply(before) == after


def test_an_edit_without_text_is_refused() -> None:
    for fields in ({"action": "replace", "text": "x"}, {"action": "append", "text": ""}):
        with pytest.raises((ConfigError, ProblemValueError, ValueError)):
            CaptionEdit.model_validate(fields)


def test_changes_are_undone_one_by_one_and_what_was_edited_since_stays(cats: Path) -> None:
    before = texts(cats)
    history = history_of(cats)
    assert history.change(pictures(cats), CaptionEdit(action="replace", find="old", text="new")) == 2
    assert history.change(pictures(cats), CaptionEdit(action="prepend", text="sks")) == 3
    newest, first = history_of(cats).list()
    assert (newest.action, newest.files, first.find) == ("prepend", 3, "old")
    (cats / "b.txt").write_text("by hand\n", encoding="utf-8")
    assert history.undo(newest.id) == (2, 1)
    assert history.undo(first.id) == (2, 0)
    assert texts(cats) == before | {"b": "by hand\n"}
    assert not history.list()
    with pytest.raises(DataError, match="undone already"):
        history.undo(first.id)


def test_a_change_that_was_cut_short_is_whole_in_each_file_and_undone(
    cats: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = texts(cats)
    write, files = write_atomically, 0

    def fail_at_the_second(path: Path, content: bytes) -> None:
        nonlocal files
        files += path.suffix == ".txt"
        if files == 2:
            raise StorageError("disk_full", "full")
        write(path, content)

    monkeypatch.setattr("studio.datasets.bulk.write_atomically", fail_at_the_second)
    history = history_of(cats)
    with pytest.raises(StorageError):
        history.change(pictures(cats), CaptionEdit(action="append", text="end"))
    assert texts(cats) == before | {"a": "a cat, old, end\n"}
    monkeypatch.undo()
    assert history.undo(history.list()[0].id) == (3, 0)
    assert texts(cats) == before


def test_nothing_is_written_if_one_caption_may_not_be_read(cats: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret\n")
    (cats / "d.txt").symlink_to(secret)

    def allowed(path: Path) -> Path:
        if not path.resolve().is_relative_to(cats):
            raise DataError("dataset_path_not_allowed", "not below {folders}", folders=str(cats))
        return path

    before = texts(cats)
    with pytest.raises(DataError):
        CaptionHistory(tmp_path / "changes", cats, allowed, lambda: None).change(
            pictures(cats), CaptionEdit(action="append", text="end")
        )
    assert texts(cats) == before


@pytest.mark.parametrize(
    ("kind", "text", "kept"),
    [("all", "", "abc"), ("none", "", "c"), ("zh", "", "b"), ("en", "", "a"), ("all", "CAT", "a"), ("zh", "cat", "")],
)
def test_a_filter_keeps_pictures_by_language_and_text(kind: Kind, text: str, kept: str) -> None:
    captions: dict[str, tuple[str, ...]] = {"a": ("a cat, ink",), "b": ("一只猫",), "c": ()}
    entries = [CaptionedPicture(key=key, captions=given, sample=None) for key, given in captions.items()]
    assert "".join(entry.key for entry in entries if Filter(kind=kind, text=text).keeps(entry)) == kept


def test_tags_are_counted_once_a_picture() -> None:
    given: list[tuple[str, ...]] = [("cat, ink, cat",), ("ink，猫", "ink"), ("猫、dog",)]
    entries = [CaptionedPicture(key=str(i), captions=captions, sample=None) for i, captions in enumerate(given)]
    assert tag_counts(entries) == [("ink", 2), ("猫", 2)]
