"""What the studio shows of a picture's origin: of any file that is sent, and of the gallery's."""

import re
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner
from starlette.testclient import TestClient

from lithograph.__main__ import cli
from service.wire.picture import PictureWriter
from service.wire.provenance.settings import ProvenanceConfig
from service.wire.schema import ResolvedRequest
from studio.app import create_app
from studio.config import StudioConfig
from studio.generate.gallery import GalleryPicture, new_id
from studio.generate.recipe import PictureRecipe
from tests.service.wire.provenance.authority import Authority
from tests.service.wire.provenance.test_packet import (
    FORMATS,
    MODEL,
    PIXELS,
    a_request,
    file_of,
    png_with,
    with_checksums,
)
from tests.service.wire.provenance.test_parent import EMPTY_BOX
from tests.studio.context import studio_of

HERE = "http://127.0.0.1:8001"
INTACT, CHANGED, UNSIGNED = "Signed, and intact", "Changed after it was signed", "Not signed"


@pytest.fixture
def visitor(tmp_path: Path) -> TestClient:
    return TestClient(create_app(StudioConfig(home=tmp_path / "home")), base_url=HERE)


def signed(folder: Path, output_format: str) -> bytes:
    certificate, key = Authority(folder).issue()
    writer = PictureWriter(MODEL, ProvenanceConfig(c2pa_certificate=certificate, c2pa_key=key))
    return writer.file_of(PIXELS, a_request(output_format), 0, ())


def shown(visitor: TestClient, content: bytes, **headers: str) -> str:
    reply = visitor.post("/verify", files={"picture": ("<a>.png", content)}, headers={"HX-Request": "true", **headers})
    assert reply.status_code == 200
    return re.sub(r"\s+", " ", reply.text)


def kept_in_gallery(visitor: TestClient, content: bytes) -> str:
    """Return the id of a picture that is put into the gallery."""
    created = datetime.now(UTC)
    recipe = PictureRecipe(prompt="x", width=64, height=64, steps=1, guidance_scale=1, seed=1)
    picture = GalleryPicture(
        id=new_id(created), created=created, recipe=recipe, flavour="embedded", model_hash="0" * 64, seconds=1,
        drawn_prompt="x",
    )  # fmt: skip
    studio_of(visitor).gallery.add(content, picture)
    return picture.id


@pytest.mark.parametrize("output_format", FORMATS)
def test_a_signed_file_is_intact_until_its_recipe_is_exchanged(
    visitor: TestClient, tmp_path: Path, output_format: str
) -> None:
    content = signed(tmp_path, output_format)
    text = shown(visitor, content)
    assert INTACT in text
    assert "Tests Ltd · issuer unknown" in text
    assert "c2pa.created trainedAlgorithmicMedia" in text
    assert MODEL.hash in text
    assert "carried, and agrees with the label" in text
    assert content.count(b'"seed":4') == 1
    exchanged = content.replace(b'"seed":4', b'"seed":5')
    text = shown(visitor, with_checksums(exchanged) if output_format == "png" else exchanged)
    assert (INTACT in text, CHANGED in text) == (False, True)
    assert "dataHash.mismatch" in text
    assert "another one than the label was made for" in text


def test_an_unsigned_file_is_said_to_be_so_on_a_whole_page_too(visitor: TestClient) -> None:
    assert UNSIGNED in shown(visitor, file_of("jpeg"))
    assert "&lt;a&gt;.png" in shown(visitor, file_of("jpeg"))
    assert "没有签名" in shown(visitor, file_of("jpeg"), Cookie="language=zh")
    page = visitor.post("/verify", files={"picture": ("a.webp", file_of("webp"))}).text
    assert UNSIGNED in page
    assert "<html" in page
    assert UNSIGNED not in visitor.get("/verify").text


def test_an_issuer_is_trusted_whose_root_the_operator_gave(tmp_path: Path) -> None:
    content = signed(tmp_path, "png")
    root, other = tmp_path / "Test-Root.pem", Authority(tmp_path, "Other Root").root
    both = tmp_path / "both.pem"
    both.write_bytes(other.read_bytes() + root.read_bytes())
    for trust, expected in ((root, "issuer trusted"), (both, "issuer trusted"), (other, "issuer unknown: anybody")):
        studio = create_app(StudioConfig(home=tmp_path / trust.stem, c2pa_trust=trust))
        visitor = TestClient(studio, base_url=HERE)
        assert f"Tests Ltd · {expected}" in shown(visitor, content)
        picture = kept_in_gallery(visitor, content)
        assert f"Tests Ltd · {expected}" in visitor.get(f"/gallery/{picture}/origin").text
    assert "签发者未知" in shown(visitor, content, Cookie="language=zh")


def test_roots_that_cannot_be_read_end_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.pem").write_text("text")
    for name, problem in (
        ("none.pem", "cannot be read"),
        ("text.pem", "has no certificate in PEM"),
        (".", "cannot be read"),
    ):
        ended = CliRunner().invoke(cli, ["server", "--home", "home", "--c2pa-trust", name])
        assert ended.exit_code == 2
        assert f"Error: --c2pa-trust = {name}: {problem}" in ended.output
    assert not Path("home").exists()


def test_a_picture_made_from_another_one_is_said_to_be_so(visitor: TestClient) -> None:
    edit = {"edit": {"image_sha256": "b" * 64, "strength": 0.6}}
    request = ResolvedRequest.model_validate(a_request("webp").model_dump() | edit)
    content = PictureWriter(MODEL, ProvenanceConfig()).file_of(PIXELS, request, 0, ())
    assert "<dd>made by a model from another picture</dd>" in shown(visitor, content)
    assert "由模型基于另一张图片生成" in shown(visitor, content, Cookie="language=zh")
    assert "<dd>made by a model</dd>" in shown(visitor, file_of("webp"))


def test_without_the_library_the_label_is_shown_and_the_rest_said_to_be_unchecked(
    visitor: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = signed(tmp_path, "png")
    monkeypatch.setitem(sys.modules, "c2pa", None)
    text = shown(visitor, content)
    assert "Signatures were not checked: the package c2pa-python, which" in text
    assert (INTACT in text, UNSIGNED in text) == (False, False)
    assert "made by a model" in text


def test_a_manifest_that_takes_too_long_to_check_is_not_read(visitor: TestClient) -> None:
    content = png_with((b"caBX", (28 * 4000 + 8).to_bytes(4) + b"jumb" + EMPTY_BOX * 4000))
    text = shown(visitor, content)
    assert (
        "were not checked: the manifest has more than 8 MiB or 3000 boxes; check it with another program.</p>" in text
    )
    assert (INTACT in text, UNSIGNED in text, CHANGED in text) == (False, False, False)
    assert "未检查签名：清单超过 8 MiB 或 3000 个数据块" in shown(visitor, content, Cookie="language=zh")


def test_the_gallery_shows_what_its_files_say(visitor: TestClient, tmp_path: Path) -> None:
    address = f"/gallery/{kept_in_gallery(visitor, signed(tmp_path, 'png'))}"
    assert f'hx-get="{address}/origin"' in visitor.get(address).text
    assert INTACT in visitor.get(f"{address}/origin").text
    assert visitor.get("/gallery/20260101-000000000000-aaaaaa/origin").status_code == 404


@pytest.mark.parametrize(("content", "problem"), [(b"no picture", "is not a picture"), (b"", "is not a picture")])
def test_a_file_that_is_no_picture_is_refused(visitor: TestClient, content: bytes, problem: str) -> None:
    reply = visitor.post("/verify", files={"picture": ("a.png", content)}, headers={"HX-Request": "true"})
    assert reply.status_code == 422
    assert problem in reply.text
    assert visitor.post("/verify", data={"picture": "text"}).status_code == 422
