"""The studio's datasets: hostile and incomplete uploads, captions beside pictures, results of scans."""

import io
import os
import struct
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from longcat.errors import ConfigError, DataError
from studio.datasets.captions import caption_file, read_captions, write_captions
from studio.datasets.datasets import Datasets, ScanProgress, Scans, ScanTerms
from studio.datasets.thumbnails import SIDE_PX, Thumbnails
from studio.datasets.uploads import UploadLimits, add, create, safe_key
from trainer.data.inventory import Inventory


def png(width: int = 128, height: int = 128, colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "PNG")
    return buffer.getvalue()


def files(**contents: bytes) -> list[tuple[str, io.BytesIO]]:
    return [(name.replace("__", "."), io.BytesIO(content)) for name, content in contents.items()]


def zipped(members: dict[str, bytes], *, link: str = "") -> io.BytesIO:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        if link:
            info = zipfile.ZipInfo(link)
            info.external_attr = 0o120777 << 16
            archive.writestr(info, "/etc/passwd")
    buffer.seek(0)
    return buffer


@pytest.fixture
def datasets(tmp_path: Path) -> Datasets:
    (tmp_path / "root").mkdir()
    return Datasets(tmp_path / "datasets", [tmp_path / "root"])


@pytest.fixture
def scans(tmp_path: Path) -> Iterator[Scans]:
    made = Scans(tmp_path / "cache")
    yield made
    made.close()


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_pictures_and_captions_become_a_dataset_and_what_is_no_picture_is_named(datasets: Datasets) -> None:
    given = files(a__png=png(), a__txt="一只猫".encode(), evil__exe=b"MZ", broken__png=b"\x89PNG....", empty__jpg=b"")
    received = create(datasets.uploads / "cats", given, UploadLimits())
    assert (received.pictures, received.captions) == (1, 1)
    assert [name for name, _ in received.refused] == ["evil.exe", "broken.png", "empty.jpg"]
    assert "as no picture or caption does" in str(received.refused[0][1])
    dataset = datasets.open(str(datasets.uploads / "cats"))
    assert (dataset.name, dataset.is_uploaded) == ("cats", True)
    assert names(dataset.folder) == ["a.png", "a.txt"]


def test_a_zip_is_unpacked_without_its_one_folder_and_without_junk(datasets: Datasets) -> None:
    archive = zipped({
        "my cats/a.png": png(), "my cats/sub/b.png": png(), "my cats/a.txt": b"a cat", "__MACOSX/my cats/._a.png": b"x",
        "my cats/.DS_Store": b"x",
    })  # fmt: skip
    received = create(datasets.uploads / "cats", [("cats.ZIP", archive)], UploadLimits())
    assert (received.pictures, received.captions, received.refused) == (2, 1, ())
    assert names(datasets.uploads / "cats") == ["a.png", "a.txt", "sub/b.png"]


def test_nothing_gets_out_of_the_dataset(datasets: Datasets, tmp_path: Path) -> None:
    archive = zipped(
        {"../../out.png": png(), "/abs.png": png(), "C:\\win.png": png(), "ok.png": png()}, link="link.png"
    )
    given = [("a.zip", archive), ("../b.png", io.BytesIO(png())), ("x\\..\\..\\c.png", io.BytesIO(png()))]
    received = create(datasets.uploads / "d", given, UploadLimits())
    assert received.pictures == 1
    assert len(received.refused) == 6
    assert names(tmp_path) == ["datasets/d/ok.png"]


@pytest.mark.parametrize(
    ("given", "key"),
    [("a.png", "a.png"), ("./a/./b.png", "a/b.png"), ("a:b?.png", "a_b_.png"), ("a\x00\n.png", "a__.png"),
     ("cafe\u0301.png", "café.png"), ("一只猫.png", "一只猫.png"),
     (" a . /b.png", "a/b.png"), (".hidden.png", "hidden.png")],
)  # fmt: skip
def test_names_are_made_safe(given: str, key: str) -> None:
    assert safe_key(given) == key


@pytest.mark.parametrize(
    "given", ["", ".", "..", "a/../b", "/a", "\\a", "c:\\a", "a" * 300, "/".join("abcdefghij"), "..."]
)
def test_names_that_cannot_be_are_refused(given: str) -> None:
    with pytest.raises(DataError):
        safe_key(given)


def test_bombs_are_refused_before_they_go_off(datasets: Datasets) -> None:
    limits = UploadLimits(total_bytes=3 * 10**6, file_bytes=10**5, pixels=10**6)
    with pytest.raises(DataError, match=r"unpacks to more than 3,000,000 bytes"):
        create(datasets.uploads / "d", [("z.zip", zipped({"a.png": b"\0" * 10**7}))], limits)
    received = create(
        datasets.uploads / "d",
        [("huge.png", io.BytesIO(png(2000, 2000))), ("long.txt", io.BytesIO(b"a" * 10**6)), *files(a__png=png())],
        limits,
    )
    assert received.pictures == 1
    assert dict(received.refused)["huge.png"].code == "picture_has_too_many_pixels"
    assert "more than 100,000 bytes" in str(dict(received.refused)["long.txt"])


def test_an_archive_that_lies_about_its_sizes_is_found_out(datasets: Datasets) -> None:
    content = zipped({"a.txt": b"a" * 10**6, "b.png": png()}).getvalue()
    size = (10**6).to_bytes(4, "little")
    lying = content.replace(size, (10).to_bytes(4, "little"))
    assert lying != content
    received = create(datasets.uploads / "d", [("z.zip", io.BytesIO(lying))], UploadLimits())
    assert [(name, problem.code) for name, problem in received.refused] == [("a.txt", "zip_damaged")]
    assert names(datasets.uploads / "d") == ["b.png"]


def test_an_upload_that_cannot_be_used_leaves_nothing(datasets: Datasets) -> None:
    for given in ([("z.zip", io.BytesIO(b"PK no zip"))], files(a__png=b"no"), []):
        with pytest.raises(DataError, match=r"^files"):
            create(datasets.uploads / "d", given, UploadLimits())
    with pytest.raises(DataError, match="more than 2 files"):
        create(datasets.uploads / "d", files(a__png=png(), b__png=png(), c__png=png()), UploadLimits(files=2))
    assert list(datasets.uploads.iterdir()) == []


def test_a_half_upload_is_never_seen(datasets: Datasets) -> None:
    def broken_off() -> Iterator[tuple[str, io.BytesIO]]:
        yield "a.png", io.BytesIO(png())
        assert datasets.list() == []
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        create(datasets.uploads / "d", broken_off(), UploadLimits())
    assert list(datasets.uploads.iterdir()) == []


def test_more_can_be_added_and_the_same_name_is_replaced(datasets: Datasets) -> None:
    folder = datasets.uploads / "d"
    create(folder, files(a__png=png(), a__txt=b"one"), UploadLimits())
    received = add(folder, files(a__txt=b"two", b__png=png(), B__PNG=png()), UploadLimits())
    assert names(folder) == ["a.png", "a.txt", "b.png"]
    ((name, problem),) = received.refused
    assert (name, str(problem)) == ("B.PNG", "is in the upload twice; the first is kept")
    assert read_captions(folder / "a.png") == "two"


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


@pytest.mark.parametrize(("typed", "name"), [("My cats!", "My cats"), ("  ../猫 猫 ", "猫 猫"), ("a" * 99, "a" * 64)])
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


def test_a_scan_says_what_the_trainer_would(datasets: Datasets, scans: Scans) -> None:
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


def damaged_zip(kind: str) -> io.BytesIO:
    """Return a zip of a.png, b.png and c.txt, in which the second, or the whole archive, is damaged."""
    method = {"lzma": zipfile.ZIP_LZMA, "bz2": zipfile.ZIP_BZIP2}.get(kind, zipfile.ZIP_DEFLATED)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in (("a.png", png()), ("b.png", png(colour="blue")), ("c.txt", b"a cat")):
            archive.writestr(name, content)
        offset = archive.getinfo("b.png").header_offset + 30 + len("b.png")
    content = bytearray(buffer.getvalue())
    match kind:
        case "name":
            central = content.index(b"PK\x01\x02")
            content[central + 9] |= 0x08  # UTF-8
            content[central + 46] = 0xFF
        case "method":
            second = content.index(b"PK\x01\x02", content.index(b"PK\x01\x02") + 4)
            content[second + 10 : second + 12] = struct.pack("<H", 77)
        case _:
            content[offset : offset + 40] = b"\xff" * 40
    return io.BytesIO(bytes(content))


@pytest.mark.parametrize("kind", ["lzma", "bz2", "deflate", "method"])
def test_a_damaged_member_of_a_zip_does_not_hide_the_others(datasets: Datasets, kind: str) -> None:
    received = create(datasets.uploads / "cats", [("cats.zip", damaged_zip(kind))], UploadLimits())
    assert [(name, problem.code) for name, problem in received.refused] == [("b.png", "zip_damaged")]
    assert names(datasets.uploads / "cats") == ["a.png", "c.txt"]


def test_a_zip_whose_names_are_not_unicode_is_refused(datasets: Datasets) -> None:
    with pytest.raises(DataError, match="cannot be unpacked"):
        create(datasets.uploads / "cats", [("cats.zip", damaged_zip("name"))], UploadLimits())
    assert names(datasets.uploads) == []


@pytest.mark.parametrize("members", [("x.png", "x.png/y.png"), ("x.png/y.png", "x.png"), ("x.png/y.png", "X.PNG")])
def test_a_name_is_a_file_or_a_folder(datasets: Datasets, members: tuple[str, str]) -> None:
    first, second = members
    received = create(
        datasets.uploads / "cats", [("c.zip", zipped({"keep.png": png(), first: png(), second: png()}))], UploadLimits()
    )
    assert [(name, problem.code) for name, problem in received.refused] == [(second, "upload_file_and_folder")]
    assert names(datasets.uploads / "cats") == ["keep.png", first]
    again = add(datasets.uploads / "cats", [("z.zip", zipped({second: png(), "z.txt": b"z"}))], UploadLimits())
    assert [problem.code for _, problem in again.refused] == ["upload_file_and_folder"] * (second != "X.PNG")


@pytest.mark.parametrize("path", ["~nosuchuser/x", "~nosuchuser", "\0", "x" * 5000, "/" + "x/" * 5000, "", "~"])
def test_a_path_that_cannot_be_is_a_mistake_of_the_user(datasets: Datasets, path: str) -> None:
    with pytest.raises(DataError):
        datasets.open(path)


def test_captions_of_two_files_are_shown_and_written_as_one(datasets: Datasets, scans: Scans) -> None:
    given = files(a__png=png(), a__zh__txt="一只猫".encode(), a__en__txt=b"a cat", b__png=png())
    create(datasets.uploads / "cats", given, UploadLimits())
    dataset = datasets.open(str(datasets.uploads / "cats"))
    terms = ScanTerms(flavour="embedded", resolution="128")
    found = scans.ask(dataset, terms, wait_seconds=60)
    assert not isinstance(found, ScanProgress)
    assert [sample.captions for sample in found.samples] == [("一只猫", "a cat")]
    assert [drop.key for drop in found.dropped] == ["b.png"]
    write_captions(dataset.folder / "a.png", "一只黑猫\na black cat")
    again = scans.ask(dataset, terms, wait_seconds=60)
    assert not isinstance(again, ScanProgress)
    assert [sample.captions for sample in again.samples] == [("一只黑猫", "a black cat")]
