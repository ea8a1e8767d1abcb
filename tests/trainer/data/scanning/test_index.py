"""The index of scanned pictures: unchanged files are not read again."""

import json
import os
from pathlib import Path

import pytest

from longcat.errors import DataError
from tests.trainer.data.scans import codes, config, look, picture, reasons
from trainer.data.pictures import read_pixels


def test_unchanged_pictures_are_not_opened_again_and_captions_are(tmp_path: Path) -> None:
    index, path = tmp_path / "out" / "index.json", tmp_path / "in" / "a.png"
    picture(path)
    (path.parent / "broken.png").write_bytes(b"x" * 9)
    first = look(config(path.parent), index_file=index)
    status, content = path.stat(), path.read_bytes()
    path.write_bytes(content[:-1] + b"\0")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    path.with_suffix(".txt").write_text("another cat")
    second = look(config(path.parent), index_file=index)
    assert second.samples[0].digest == first.samples[0].digest  # not read again: size and time are the same
    assert second.samples[0].captions == ("another cat",)
    assert reasons(second) == reasons(first)
    with pytest.raises(DataError, match="changed since dataset 'pictures' was scanned; start again"):
        read_pixels(second.samples[0])
    os.utime(path, ns=(0, 0))
    assert look(config(path.parent), index_file=index).samples[0].digest != first.samples[0].digest
    assert codes(look(config(path.parent), index_file=index, max_pixels=100, allow_empty=True))["a.png"] == (
        "picture_has_too_many_pixels"
    )


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff", b"null", b'{"format": 1}'])
def test_a_damaged_index_is_made_anew(tmp_path: Path, damage: bytes) -> None:
    index = tmp_path / "out" / "index.json"
    picture(tmp_path / "in" / "a.png")
    first = look(config(tmp_path / "in"), index_file=index)
    whole = index.read_bytes()
    index.write_bytes(damage)
    assert look(config(tmp_path / "in"), index_file=index).samples == first.samples
    assert index.read_bytes() == whole
    parsed = json.loads(whole)
    next(iter(parsed["sources"].values()))["a.png"]["facts"] = {"nonsense": 1}
    index.write_text(json.dumps(parsed))
    assert look(config(tmp_path / "in"), index_file=index).samples == first.samples


def test_facts_found_before_an_interruption_are_kept(tmp_path: Path) -> None:
    index = tmp_path / "out" / "index.json"
    for number in range(20):
        picture(tmp_path / "in" / f"{number:02}.png")

    def interrupt(done: int, of: int) -> None:
        assert of == 20
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        look(config(tmp_path / "in"), index_file=index, on_picture=interrupt)
    known = next(iter(json.loads(index.read_bytes())["sources"].values()))
    assert sorted(known) == [f"{number:02}.png" for number in range(7)]
    assert len(look(config(tmp_path / "in"), index_file=index).samples) == 20
