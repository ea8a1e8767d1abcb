"""The studio's datasets: hostile and incomplete uploads, captions beside pictures, results of scans."""

import io
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from longcat.errors import ConfigError, DataError
from studio.datasets import datasets as module
from studio.datasets.captions import caption_file, read_captions, write_captions
from studio.datasets.datasets import Datasets, ScanProgress, Scans, ScanTerms
from studio.datasets.thumbnails import SIDE_PX, Thumbnails
from studio.datasets.uploads import UploadLimits, create
from trainer.data.inventory import Inventory


def png(width: int = 128, height: int = 128, colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "PNG")
    return buffer.getvalue()


def files(**contents: bytes) -> list[tuple[str, io.BytesIO]]:
    return [(name.replace("__", "."), io.BytesIO(content)) for name, content in contents.items()]


@pytest.fixture
def scans(tmp_path: Path) -> Iterator[Scans]:
    made = Scans(tmp_path / "cache")
    yield made
    made.close()


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_only_allowed_folders_are_opened(datasets: Datasets, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.png").write_bytes(png())
    (datasets.roots[0] / "mine").mkdir()
    (datasets.roots[0] / "mine" / "a.png").write_bytes(png())
    (datasets.roots[0] / "mine" / "link.png").symlink_to(outside / "secret.png")
    (datasets.roots[0] / "way-out").symlink_to(outside)
    assert [dataset.name for dataset in datasets.list()] == ["mine"]
    mine = datasets.open(str(datasets.roots[0] / "mine"))
    assert not mine.is_uploaded
    assert datasets.file(mine, "a.png").read_bytes() == png()
    for path in (
        str(outside),
        str(datasets.roots[0] / "way-out"),
        str(datasets.roots[0] / ".." / "outside"),
        "/",
        "a\0b",
    ):
        with pytest.raises(DataError):
            datasets.open(path)
    for key in ("link.png", "../../outside/secret.png", str(outside / "secret.png"), "none.png"):
        with pytest.raises(DataError):
            datasets.file(mine, key)
    with pytest.raises(DataError, match="was not uploaded here"):
        datasets.delete(mine)


@pytest.mark.parametrize(
    ("typed", "name"), [("My cats!", "My cats"), ("  ../猫 猫 ", "猫 猫"), ("a" * 99, "a" * 64), ("𠀀" * 64, "𠀀" * 50)]
)
def test_a_dataset_is_called_what_a_folder_can_be(datasets: Datasets, typed: str, name: str) -> None:
    assert datasets.free_name(typed) == name
    (datasets.uploads / name).mkdir()
    with pytest.raises(DataError, match="has that name already"):
        datasets.free_name(typed)


def test_a_dataset_is_deleted(datasets: Datasets) -> None:
    create(datasets.uploads / "d", files(a__png=png()), UploadLimits())
    datasets.delete(datasets.list()[0])
    assert list(datasets.uploads.iterdir()) == []
    for typed in ("", "..", "///", "!!"):
        with pytest.raises(DataError, match="no letter or digit"):
            datasets.free_name(typed)


def test_captions_are_written_beside_the_picture(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    picture.write_bytes(png())
    assert read_captions(picture) == ""
    write_captions(picture, " a cat \r\n\r\n一只猫\0 ")
    assert (tmp_path / "a.txt").read_bytes() == "a cat\n一只猫\n".encode()
    assert read_captions(picture) == "a cat\n一只猫"
    write_captions(picture, "  ")
    assert read_captions(picture) == ""
    for text in ("a" * 20_001, "\ud800"):
        with pytest.raises(DataError):
            write_captions(picture, text)
    assert names(tmp_path) == ["a.png", "a.txt"]


def test_the_caption_file_that_is_there_is_the_one_that_is_changed(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "b.png.txt", "A.TXT", "C.png", "c.txt"):
        (tmp_path / name).write_bytes("猫".encode("gb18030") if name.lower().endswith(".txt") else png())
    assert [caption_file(tmp_path / name).name for name in ("a.png", "b.png", "C.png")] == [
        "A.TXT",
        "b.png.txt",
        "c.txt",
    ]
    assert read_captions(tmp_path / "a.png") == "猫"


def ask(scans: Scans, datasets: Datasets, terms: ScanTerms) -> Inventory:
    deadline = time.monotonic() + 60
    dataset = datasets.open(str(datasets.uploads / "d"))
    while isinstance(found := scans.ask(dataset, terms), ScanProgress):
        assert time.monotonic() < deadline
    return found


def test_a_scan_reports_what_the_trainer_would(datasets: Datasets, scans: Scans) -> None:
    given = files(
        a__png=png(), a__txt=b"a cat", b__png=png(256, 128), b__txt="一只猫".encode(), c__png=png(),
        long__png=png(), long__txt=b"word " * 60,
    )  # fmt: skip
    create(datasets.uploads / "d", given, UploadLimits())
    found = ask(scans, datasets, ScanTerms(resolution="128x128,192x64"))
    assert [sample.key for sample in found.samples] == ["a.png", "b.png"]
    assert found.languages == {"zh": 1, "en": 1, "other": 0}
    assert sorted(map(str, found.buckets)) == ["128x128", "192x64"]
    assert {drop.key: drop.problem.code for drop in found.dropped} == {
        "c.png": "caption_file_missing", "long.png": "caption_too_long",
    }  # fmt: skip
    write_captions(datasets.uploads / "d" / "c.png", "a dog")
    assert len(ask(scans, datasets, ScanTerms()).samples) == 3
    assert len(ask(scans, datasets, ScanTerms(flavour="final", resolution="1024")).samples) == 4
    with pytest.raises(ConfigError, match="resolution"):
        ask(scans, datasets, ScanTerms(resolution="wide"))
    with pytest.raises(DataError, match="caption_file"):
        ask(scans, datasets, ScanTerms(caption_strategy="csv"))


@pytest.mark.parametrize("is_told", [True, False])
def test_the_result_of_a_scan_from_before_a_change_is_not_shown(
    datasets: Datasets, scans: Scans, monkeypatch: pytest.MonkeyPatch, is_told: bool
) -> None:
    create(datasets.uploads / "d", files(a__png=png(), a__txt=b"a cat", c__png=png()), UploadLimits())
    dataset = datasets.open(str(datasets.uploads / "d"))
    assert isinstance(scans.ask(dataset, ScanTerms(), wait_seconds=0.0), ScanProgress)
    scans._pool.submit(int).result(60)  # the scan has ended in the pool's one thread; nobody has fetched its result
    write_captions(dataset.folder / "c.png", "a dog")
    if is_told:
        scans.forget(dataset.folder)
    else:
        monkeypatch.setattr(module, "_COLLECT_SECONDS", 0.0)
    assert len(ask(scans, datasets, ScanTerms()).samples) == 2


def test_thumbnails_are_small_and_follow_the_picture(tmp_path: Path) -> None:
    thumbnails = Thumbnails(tmp_path / "thumbnails")
    picture = tmp_path / "a.png"
    picture.write_bytes(png(2000, 1000))
    first = thumbnails.of(picture)
    with Image.open(io.BytesIO(first)) as image:
        assert (image.format, image.size) == ("WEBP", (SIDE_PX, SIDE_PX // 2))
    assert thumbnails.of(picture) == first
    picture.write_bytes(png(100, 100, "blue"))
    os.utime(picture, (1, 1))
    with Image.open(io.BytesIO(thumbnails.of(picture))) as image:
        assert image.size == (100, 100)
    picture.write_bytes(b"no picture")
    with pytest.raises(DataError):
        thumbnails.of(picture)


@pytest.mark.parametrize("path", ["~nosuchuser/x", "~nosuchuser", "\0", "x" * 5000, "/" + "x/" * 5000, "", "~"])
def test_a_path_that_cannot_be_is_a_mistake_of_the_user(datasets: Datasets, path: str) -> None:
    with pytest.raises(DataError):
        datasets.open(path)


def test_captions_of_two_files_are_shown_and_written_as_one(datasets: Datasets, scans: Scans) -> None:
    given = files(a__png=png(), a__zh__txt="一只猫".encode(), a__en__txt=b"a cat", b__png=png())
    create(datasets.uploads / "cats", given, UploadLimits())
    dataset = datasets.open(str(datasets.uploads / "cats"))
    with pytest.raises(DataError):
        datasets.file(dataset, "a" * 5000)
    terms = ScanTerms(flavour="embedded", resolution="128")
    found = scans.ask(dataset, terms, wait_seconds=60)
    assert not isinstance(found, ScanProgress)
    assert [sample.captions for sample in found.samples] == [("一只猫", "a cat")]
    assert [drop.key for drop in found.dropped] == ["b.png"]
    write_captions(dataset.folder / "a.png", "一只黑猫\na black cat")
    again = scans.ask(dataset, terms, wait_seconds=60)
    assert not isinstance(again, ScanProgress)
    assert [sample.captions for sample in again.samples] == [("一只黑猫", "a black cat")]
