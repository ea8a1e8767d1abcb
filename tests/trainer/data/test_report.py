"""Reports of a scan: the JSON file, the lines for a terminal, the contact sheet."""

import json
import os
from pathlib import Path

from PIL import Image

from tests.trainer.data.scans import codes, config, keys, look, picture, warnings
from trainer.data.inventory import Inventory
from trainer.data.report import contact_sheet, describe, drawable, find_font, write_report


def test_the_report_file_the_text_and_the_sheet(mess: Path, tmp_path: Path) -> None:
    found = look(config(mess, trigger_words=["版画"]))
    write_report(found, tmp_path / "out" / "report.json")
    written = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert written["pictures"] == 7
    assert written["buckets"] == {"128x128": 7}
    assert written["languages"] == found.languages
    assert written["datasets"][0]["files"][".png"] == 9
    assert {
        "dataset": "pictures", "file": "empty.png", "code": "picture_empty", "problem": "empty: 0 bytes", "remedy": "",
    } in written["dropped"]  # fmt: skip
    assert {warning["code"] for warning in written["warnings"]} == warnings(found).keys()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.json"]
    text = describe(found)
    for part in ("usable: 7 pictures", "128x128  7", "版画", "empty.png: empty", "warnings:", "9 .png"):
        assert part in text
    (mess / "b.png").write_bytes(b"changed")
    contact_sheet(found, tmp_path / "out" / "sheet.png", most=5)
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        assert sheet.size == (5 * 208, 276)
        assert len(sheet.convert("RGB").getcolors(2**24) or ()) > 5
    contact_sheet(look(config(mess / "a"), allow_empty=True), tmp_path / "one.png")
    contact_sheet(Inventory(samples=(), dropped=(), warnings=(), trigger_words=()), tmp_path / "none.png")
    with Image.open(tmp_path / "none.png") as sheet:
        assert sheet.size == (208, 276)


def test_characters_that_the_font_lacks_are_replaced() -> None:
    plain = find_font(())
    assert drawable("a cat", plain) == "a cat"
    assert drawable("一只猫, ink 版画", plain) == "…, ink …"


def test_a_terminal_is_safe_from_file_names(tmp_path: Path) -> None:
    (tmp_path / "a\x1b[2J.png").touch()
    assert "\x1b" not in describe(look(config(tmp_path), allow_empty=True))


def test_a_name_that_is_no_unicode(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    picture(tmp_path / "x.png")
    (tmp_path / "x.png").rename(tmp_path / name)
    (tmp_path / "x.txt").rename((tmp_path / name).with_suffix(".txt"))
    found = look(config(tmp_path), index_file=tmp_path / "out" / "index.json")
    assert keys(found) == [name]
    write_report(found, tmp_path / "report.json")
    contact_sheet(found, tmp_path / "sheet.png")
    assert "usable: 1 pictures" in describe(found)
    again = look(config(tmp_path), index_file=tmp_path / "out" / "index.json")
    assert (again.hash, keys(again)) == (found.hash, [name])
    dropped = look(config(tmp_path, caption_strategy="filename"), allow_empty=True)
    assert codes(dropped)[name] == "caption_not_unicode"
    write_report(dropped, tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["dropped"][0]["file"] == name
    assert "caf\\udce9.png" in describe(dropped)
