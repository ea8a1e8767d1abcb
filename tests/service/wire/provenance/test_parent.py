"""The manifest of a picture that is changed: kept in those of its successors, or left out without a failure."""

import hashlib
import io
import json
import logging
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import c2pa
import pytest
from PIL import Image

from longcat.errors import EngineError
from service.wire.picture import PictureWriter
from service.wire.provenance.credential import Credential, read_credential
from service.wire.provenance.packet import EDITED_SOURCE, GENERATED_SOURCE
from service.wire.provenance.parent import parent_of
from service.wire.provenance.settings import ProvenanceConfig
from service.wire.provenance.signing import Ingredient, ManifestSigner
from service.wire.provenance.verification import SignedManifest, read_manifest
from service.wire.schema import ResolvedRequest
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
from tests.service.wire.provenance.test_signing import MEDIA, as_c2pa_reads


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def writer_of(authority: Authority, **issued: Any) -> PictureWriter:
    certificate, key = authority.issue(**issued)
    return PictureWriter(MODEL, ProvenanceConfig(c2pa_certificate=certificate, c2pa_key=key))


@pytest.fixture(scope="module")
def writer(authority: Authority) -> PictureWriter:
    return writer_of(authority)


def generated(writer: PictureWriter, output_format: str) -> bytes:
    return writer.file_of(PIXELS, a_request(output_format), 0, ())


def kept(content: bytes) -> bytes | None:
    return parent_of(content, sha256=hashlib.sha256(content).hexdigest())


def edited(writer: PictureWriter, source: bytes, output_format: str = "png", parent: bytes | None = None) -> bytes:
    edit = {"image_sha256": hashlib.sha256(source).hexdigest(), "strength": 0.6}
    request = ResolvedRequest.model_validate(a_request(output_format).model_dump() | {"edit": edit})
    return writer.file_of(PIXELS[::-1], request, 0, (), parent=kept(source) if parent is None else parent)


def signed_elsewhere(authority: Authority, content: bytes, media_type: str, assertions: Sequence[Any] = ()) -> bytes:
    """Return a file with a manifest of another program."""
    credential = read_credential(*authority.issue())
    signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(credential.algorithm, credential.chain, credential.key, None))
    created = {"action": "c2pa.created", "digitalSourceType": GENERATED_SOURCE}
    actions = {"label": "c2pa.actions.v2", "data": {"actions": [created]}}
    signed = io.BytesIO()
    with c2pa.Builder({"assertions": [actions, *assertions]}, c2pa.Context(None, signer)) as builder:
        builder.sign(media_type, io.BytesIO(content), signed)
    return signed.getvalue()


def manifest_of(content: bytes) -> SignedManifest:
    manifest = read_manifest(content)
    assert manifest is not None
    return manifest


def ingredients_of(report: dict[str, Any]) -> list[str]:
    """Return the titles of the active manifest's ingredients, with their relationships."""
    active = report["manifests"][report["active_manifest"]]
    return [f"{each['title']} {each['relationship']}" for each in active["ingredients"]]


@pytest.mark.parametrize("output_format", FORMATS)
def test_the_chain_of_origin_survives_two_edits(
    tmp_path: Path, authority: Authority, writer: PictureWriter, output_format: str
) -> None:
    other = writer_of(Authority(tmp_path, "Other Root"), kind="p384")
    source = generated(other, output_format)
    first = edited(writer, source, output_format)
    second = edited(writer, first, output_format)
    reports = [as_c2pa_reads(each, MEDIA[output_format], authority.root) for each in (first, second)]
    assert [each["validation_state"] for each in reports] == ["Trusted", "Trusted"]
    assert [len(each["manifests"]) for each in reports] == [2, 3]
    assert all(ingredients_of(each) == ["embedded inputTo", "image parentOf"] for each in reports)
    parents = [each["manifests"][each["active_manifest"]]["ingredients"][1] for each in reports]
    before = as_c2pa_reads(source, MEDIA[output_format], authority.root)["active_manifest"]
    assert [each["active_manifest"] for each in parents] == [before, reports[0]["active_manifest"]]
    assert parents[0]["metadata"]["lithograph.sha256"] == hashlib.sha256(source).hexdigest()
    manifest = manifest_of(second)
    assert manifest.failures == ()
    assert manifest.actions == ("c2pa.opened", "c2pa.edited compositeWithTrainedAlgorithmicMedia")
    assert manifest.ingredients[1] == f"image (sha256 {hashlib.sha256(first).hexdigest()}, C2PA: Tests Ltd)"
    (tmp_path / "second").write_bytes(second)
    read = subprocess.run(["exiftool", "-j", "-G1", tmp_path / "second"], capture_output=True, text=True, check=True)
    assert json.loads(read.stdout)[0]["XMP-iptcExt:DigitalSourceType"] == EDITED_SOURCE


def test_a_picture_without_a_manifest_needs_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "c2pa", None)
    gif = io.BytesIO()
    Image.fromarray(PIXELS).save(gif, "GIF")
    assert [kept(content) for content in (*map(file_of, FORMATS), gif.getvalue())] == [None] * 4


def test_a_jpeg_of_several_pictures_keeps_its_manifest(authority: Authority, writer: PictureWriter) -> None:
    several = io.BytesIO()
    picture = Image.fromarray(PIXELS)
    picture.save(several, "MPO", save_all=True, append_images=[picture])
    signed = signed_elsewhere(authority, several.getvalue(), "image/jpeg")
    assert Image.open(io.BytesIO(signed)).format == "MPO"
    assert "C2PA: Tests Ltd" in manifest_of(edited(writer, signed)).ingredients[1]


def changed_at(source: bytes, at: int, output_format: str) -> bytes:
    changed = source[:at] + bytes([source[at] ^ 1]) + source[at + 1 :]
    return with_checksums(changed) if output_format == "png" else changed


@pytest.mark.parametrize("output_format", FORMATS)
def test_a_manifest_that_is_damaged_or_of_another_file_is_left_out(
    writer: PictureWriter, output_format: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="lithograph")
    source = generated(writer, output_format)
    places = {
        "recipe": source.index(b'"seed":4') + 7,
        "assertion": source.index(b"c2pa.created") + 6,
        "structure": source.index(b"jumd", source.index(b"jumd") + 1),
    }
    assert kept(source) is not None
    for at in places.values():
        changed = changed_at(source, at, output_format)
        assert kept(changed) is None, at
        manifest = manifest_of(edited(writer, changed, output_format))
        assert manifest.failures == ()
        assert manifest.ingredients[1] == f"image (sha256 {hashlib.sha256(changed).hexdigest()})"
    assert caplog.text.count("c2pa parent ignored") == 2 * len(places)


def test_no_changed_byte_fails_an_edit(writer: PictureWriter) -> None:
    source = generated(writer, "webp")
    begin = source.index(b"C2PA")
    left_out = 0
    for at in range(begin + 8, len(source), 61):
        changed = changed_at(source, at, "webp")
        left_out += kept(changed) is None
        assert manifest_of(edited(writer, changed)).failures == (), at
    assert left_out > 20


def in_jpeg(parts: int, *, after_scan: bool) -> bytes:
    """Return a JPEG with parts of 64 KiB of a manifest."""
    content = file_of("jpeg")
    part = b"\xff\xeb" + (65_000).to_bytes(2) + b"JP\0\1" + bytes(64_994)
    at = len(content) - 2 if after_scan else 2
    return content[:at] + part * parts + content[at:]


def in_tiny_parts(boxes: int) -> bytes:
    """Return a JPEG with boxes whose names are cut by the parts of a manifest."""
    content, part = file_of("jpeg"), b"JP\0\1" + bytes(4)
    parts = (b"\xff\xeb" + (2 + len(part) + len(each)).to_bytes(2) + part + each for each in (b"jum", b"d") * boxes)
    return content[:2] + b"".join(parts) + content[2:]


def in_webp(size: int) -> bytes:
    content = file_of("webp") + b"C2PA" + size.to_bytes(4, "little") + size.to_bytes(4) + b"jumb" + bytes(size - 8)
    return b"RIFF" + (len(content) - 8).to_bytes(4, "little") + content[8:]


EMPTY_BOX = (28).to_bytes(4) + b"jumb" + (20).to_bytes(4) + b"jumd" + bytes(12)


@pytest.mark.parametrize(
    "content",
    [
        png_with((b"caBX", (2**21).to_bytes(4) + b"jumb" + bytes(2**21))),
        png_with((b"caBX", (28 * 20_000 + 8).to_bytes(4) + b"jumb" + EMPTY_BOX * 20_000)),
        in_jpeg(20, after_scan=False),
        in_jpeg(20, after_scan=True),
        in_tiny_parts(300),
        in_webp(2**21),
    ],
    ids=["png", "boxes", "jpeg", "jpeg after the scan", "jpeg in tiny parts", "webp"],
)
def test_a_huge_manifest_is_not_read(
    content: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="lithograph")
    Image.open(io.BytesIO(content)).load()
    monkeypatch.setattr("service.wire.provenance.parent.read_manifest", lambda _: pytest.fail("it was read"))
    assert kept(content) is None
    assert "more than 1048576 bytes or 500 boxes" in caplog.text


def test_a_large_manifest_within_the_bounds_is_read_in_time(authority: Authority, writer: PictureWriter) -> None:
    assertions = [{"label": "org.test.one", "data": {"number": i}} for i in range(450)]
    large = signed_elsewhere(authority, file_of("png"), "image/png", assertions)
    begin = time.process_time()
    assert "C2PA: Tests Ltd" in manifest_of(edited(writer, large)).ingredients[1]
    assert time.process_time() - begin < 5


def test_a_manifest_that_cannot_be_added_is_left_out(
    writer: PictureWriter, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="lithograph")
    source = file_of("png")
    content = edited(writer, source, parent=b"no archive")
    assert as_c2pa_reads(content, "image/png", authority.root)["validation_state"] == "Trusted"
    assert manifest_of(content).ingredients[1] == f"image (sha256 {hashlib.sha256(source).hexdigest()})"
    assert "c2pa parent ignored" in caplog.text


def test_an_expired_certificate_fails_a_picture_with_a_parent_too(tmp_path: Path, writer: PictureWriter) -> None:
    certificate, key = Authority(tmp_path).issue(days=(-3, -1))
    credential = Credential(
        chain=certificate.read_bytes(), key=key.read_bytes(), algorithm="es256", end=datetime.now(UTC)
    )
    source = generated(writer, "png")
    with pytest.raises(EngineError, match=r"not valid at time of signing"):
        ManifestSigner(credential).sign(
            file_of("png"), "image/png", (Ingredient.of_picture("b" * 64),), parent_of(source, sha256="b" * 64)
        )
