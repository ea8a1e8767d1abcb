"""``lithograph generate`` with a signing certificate, and again from the signed file."""

import io
import json
from pathlib import Path

import c2pa
import numpy as np
from PIL import Image

from service.wire.provenance.credential import read_credential
from service.wire.provenance.signing import ManifestSigner
from service.wire.provenance.verification import read_manifest
from tests.conftest import run_lithograph
from tests.service.http.test_editing import PHOTO
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


def test_an_edit_keeps_the_manifest_of_its_picture(tmp_path: Path) -> None:
    certificate, key = Authority(tmp_path).issue()
    signing = ("--c2pa-certificate", str(certificate), "--c2pa-key", str(key))
    (tmp_path / "signed.png").write_bytes(
        ManifestSigner(read_credential(certificate, key)).sign(PHOTO, "image/png", ())
    )
    for source, output in (("signed.png", "edit.webp"), ("edit.webp", "again.jpg")):
        finished = run_lithograph("edit", source, "a cat", "--steps", "2", *signing, "-o", output, cwd=tmp_path)
        assert finished.returncode == 0, finished.stderr
    content = (tmp_path / "again.jpg").read_bytes()
    manifest = read_manifest(content)
    assert manifest.failures == ()
    assert "C2PA: Tests Ltd" in manifest.ingredients[1]
    with c2pa.Reader("image/jpeg", io.BytesIO(content)) as reader:
        assert len(json.loads(reader.json())["manifests"]) == 3
