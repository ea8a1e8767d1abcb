"""Uploads to the studio's datasets, hostile and incomplete ones included."""

import io
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from longcat.errors import DataError
from studio.datasets.captions import read_captions
from studio.datasets.datasets import Datasets
from studio.datasets.uploads import UploadLimits, add, create, safe_key
from tests.studio.datasets.test_pages import files, names, png


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


def test_an_archive_with_false_sizes_is_refused(datasets: Datasets) -> None:
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
