"""``lithograph generate`` with a signing certificate, and again from the signed file."""

from pathlib import Path

import numpy as np
from PIL import Image

from service.wire.provenance.verification import read_manifest
from tests.conftest import run_lithograph
from tests.service.wire.provenance.authority import Authority


def test_a_signed_picture_is_made_again_pixel_by_pixel(tmp_path: Path) -> None:
    certificate, key = Authority(tmp_path).issue()
    signing = ("--c2pa-certificate", str(certificate), "--c2pa-key", str(key))
    runs = {
        "plain.jpg": ("一只猫", "--seed", "5", "--steps", "2"),
        "signed.jpg": ("--recipe", "plain.jpg", *signing),
        "again.jpg": ("--recipe", "signed.jpg"),
    }
    for output, options in runs.items():
        finished = run_lithograph("generate", *options, "-o", output, cwd=tmp_path)
        assert finished.returncode == 0, finished.stderr
    plain, signed, again = ((tmp_path / name).read_bytes() for name in runs)
    assert again == plain
    assert signed != plain
    assert np.array_equal(Image.open(tmp_path / "signed.jpg"), Image.open(tmp_path / "plain.jpg"))
    assert read_manifest(signed).is_intact
