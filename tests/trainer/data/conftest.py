"""Directories that several tests scan."""

import os
from pathlib import Path

import pytest
from PIL import Image

from tests.trainer.data.scans import picture
from tests.trainer.data.test_pictures import encoded, png


@pytest.fixture
def mess(tmp_path: Path) -> Path:
    """Return a directory with every kind of file, usable and not."""
    root = tmp_path / "mess"
    for name in ("b.png", "a/nested.JPG", "猫 1.png", ".hidden/x.png", ".DS.png", "wide.webp"):
        picture(root / name)
    whole = encoded(Image.effect_noise((128, 128), 50), "JPEG")
    for name, content in {
        "truncated.jpg": whole[: len(whole) // 2],
        "empty.png": b"",
        "page.png": b"<html>404</html>",
        "bomb.png": png(60_000, 60_000, bits=8, colour=2, rows=bytes(100)),
        "really_png.jpg": encoded(Image.new("RGB", (128, 128), (1, 2, 3)), "PNG"),
        "phone.HEIC": b"ftypheic",
        "what.dat": whole,
        "README": b"read me",
        "notes.md": b"not a picture, and not meant for one",
    }.items():
        (root / name).write_bytes(content)
        (root / name).with_suffix(".txt").write_text("a thing")
    picture(root / "bare.png", caption=None)
    picture(root / "blank.png", caption="\ufeff \r\n")
    picture(root / "chinese.png")
    (root / "chinese.txt").write_bytes("一只猫".encode("gb18030"))
    picture(root / "windows.png")
    (root / "windows.txt").write_bytes(b"\xef\xbb\xbfa window\r\n\r\n")
    (root / "loop").symlink_to(root)
    (root / "gone.png").symlink_to(root / "nowhere.png")
    os.mkfifo(root / "pipe.png")
    return root
