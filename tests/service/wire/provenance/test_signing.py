"""C2PA: what is signed, that it holds, and which certificates are refused. c2pa's own reader and exiftool read it."""

import io
import json
import re
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import c2pa
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from lithograph.__main__ import cli
from longcat.errors import ConfigError, EngineError, LithographError
from service.wire.picture import PictureWriter, read_recipe
from service.wire.provenance.credential import Credential
from service.wire.provenance.settings import ProvenanceConfig
from service.wire.provenance.signing import ManifestSigner
from service.wire.provenance.verification import ManifestUnreadableError, read_manifest
from service.wire.schema import AppliedAdapter, ResolvedRequest
from tests.service.wire.provenance.authority import Authority
from tests.service.wire.provenance.test_packet import FORMATS, MODEL, PIXELS, a_request, file_of, pixels_of

INK = AppliedAdapter(name="ink", version=3, scale=0.8, sha256="a" * 64, modules=4)
MEDIA = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
SOURCES = "http://cv.iptc.org/newscodes/digitalsourcetype/"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def writer(authority: Authority) -> PictureWriter:
    certificate, key = authority.issue()
    return PictureWriter(MODEL, ProvenanceConfig(c2pa_certificate=certificate, c2pa_key=key))


def signed(writer: PictureWriter, output_format: str, **changes: Any) -> bytes:
    request = ResolvedRequest.model_validate(a_request(output_format).model_dump() | changes)
    return writer.file_of(PIXELS, request, 0, (INK,))


def as_c2pa_reads(content: bytes, media_type: str, root: Path) -> dict[str, Any]:
    settings = c2pa.Settings.from_dict({"version": 1, "trust": {"user_anchors": root.read_text()}})
    with c2pa.Reader(media_type, io.BytesIO(content), context=c2pa.Context(settings)) as reader:
        report: dict[str, Any] = json.loads(reader.json())
    return report


def verified(path: Path, *options: str) -> tuple[int, dict[str, Any]]:
    result = CliRunner().invoke(cli, ["verify", str(path), "--json", *options])
    return result.exit_code, json.loads(result.output)


@pytest.mark.parametrize("output_format", FORMATS)
def test_other_programs_trust_the_signature(
    tmp_path: Path, authority: Authority, writer: PictureWriter, output_format: str
) -> None:
    content = signed(writer, output_format)
    report = as_c2pa_reads(content, MEDIA[output_format], authority.root)
    assert report["validation_state"] == "Trusted"
    manifest = report["manifests"][report["active_manifest"]]
    (actions,) = [each["data"]["actions"] for each in manifest["assertions"] if each["label"] == "c2pa.actions.v2"]
    assert [(each["action"], each["digitalSourceType"]) for each in actions] == [
        ("c2pa.created", SOURCES + "trainedAlgorithmicMedia")
    ]
    assert len(actions[0]["parameters"]["ingredients"]) == 2
    assert actions[0]["softwareAgent"]["name"] == "Lithograph"
    used = {each["title"]: (each["relationship"], each["metadata"]) for each in manifest["ingredients"]}
    assert used["embedded"] == ("inputTo", {"lithograph.kind": "model", "lithograph.sha256": MODEL.hash})
    assert used["ink"][1]["lithograph.version"] == "3"
    assert used["ink"][1]["lithograph.sha256"] == "a" * 64
    path = tmp_path / "picture"
    path.write_bytes(content)
    read = subprocess.run(["exiftool", "-j", "-G1", "-struct", path], capture_output=True, text=True, check=True)
    assert json.loads(read.stdout)[0]["XMP-iptcExt:DigitalSourceType"] == SOURCES + "trainedAlgorithmicMedia"
    assert ("c2pa" in read.stdout) == (output_format != "webp")  # exiftool 12 knows no C2PA in a WebP


@pytest.mark.parametrize("output_format", FORMATS)
def test_two_signatures_differ_and_nothing_else_of_the_file(
    tmp_path: Path, writer: PictureWriter, output_format: str
) -> None:
    first, second, plain = signed(writer, output_format), signed(writer, output_format), file_of(output_format)
    assert first != second
    assert pixels_of(first).tobytes() == pixels_of(second).tobytes() == pixels_of(plain).tobytes()
    recipes = []
    for content in (first, second):
        path = tmp_path / "picture"
        path.write_bytes(content)
        recipes.append(read_recipe(path))
        assert verified(path)[1]["label and recipe agree"] is True
    assert recipes[0] == recipes[1]
    assert recipes[0].request.model_copy(update={"adapters": ()}) == a_request(output_format)


def test_a_changed_picture_is_a_composite_with_the_original_as_its_parent(
    authority: Authority, writer: PictureWriter
) -> None:
    edit = {"image_sha256": "b" * 64, "mask_sha256": None, "strength": 0.5, "expand": None}
    fields = {name: edit[name] for name in edit if edit[name] is not None}
    content = signed(writer, "png", edit=fields)
    report = as_c2pa_reads(content, "image/png", authority.root)
    assert report["validation_state"] == "Trusted"
    manifest = read_manifest(content)
    assert manifest.actions == ("c2pa.opened", "c2pa.edited compositeWithTrainedAlgorithmicMedia")
    (parent,) = [
        each
        for each in report["manifests"][report["active_manifest"]]["ingredients"]
        if each["relationship"] == "parentOf"
    ]
    assert parent["metadata"]["lithograph.sha256"] == "b" * 64


@pytest.mark.parametrize("output_format", FORMATS)
def test_one_changed_byte_is_found(writer: PictureWriter, output_format: str) -> None:
    content = signed(writer, output_format)
    inside = content.index(b"jumb")
    outside = [at for at in range(len(content)) if not inside - 64 <= at < inside + 12_000]
    assert len(outside) > 1000
    for at in [*outside[:: len(outside) // 40], content.index(b'"seed":4') + 7]:
        changed = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
        try:
            manifest = read_manifest(changed)
        except ManifestUnreadableError:
            continue
        assert manifest is None or not manifest.is_intact, at


def test_a_damaged_manifest_is_an_error_of_ours(writer: PictureWriter) -> None:
    content = signed(writer, "png")
    references = [found.start() for found in re.finditer(b"self#jumbf=c2pa.assertions", content)]
    assert references
    problems = set()
    for at in (reference + 9 for reference in references):
        for changed_at in range(at - 12, at + 12):
            changed = content[:changed_at] + bytes([content[changed_at] ^ 1]) + content[changed_at + 1 :]
            try:
                read_manifest(changed)
            except ManifestUnreadableError as error:
                problems.add(str(error))
    assert "the manifest has not the structure that C2PA gives it" in problems


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_verify_ends_with_1_for_a_changed_file(tmp_path: Path, writer: PictureWriter, output_format: str) -> None:
    path = tmp_path / "picture"
    path.write_bytes(signed(writer, output_format).replace(b'"seed":4', b'"seed":5'))
    code, facts = verified(path)
    assert code == 1
    assert (facts["signed"], facts["intact"]) == (True, False)
    assert facts["problems"] == ["assertion.dataHash.mismatch"]


def test_verify_says_whether_the_issuer_is_known(tmp_path: Path, authority: Authority, writer: PictureWriter) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(signed(writer, "png"))
    other = Authority(tmp_path, "Other Root").root
    expected = {
        (): "unknown: give",
        ("--trust", str(authority.root)): "known, by",
        ("--trust", str(other)): "unknown: none",
    }
    for options, issuer in expected.items():
        code, facts = verified(path, *options)
        assert (code, facts["intact"], facts["signed by"]) == (0, True, "Tests Ltd")
        assert facts["issuer"].startswith(issuer)
    refused = CliRunner().invoke(cli, ["verify", str(path), "--trust", str(path)])
    assert "has no certificate in PEM" in str(refused.exception)


@pytest.mark.parametrize("kind", ["p256", "p384", "p521", "ed25519", "rsa"])
def test_every_kind_of_key_that_c2pa_allows_signs(authority: Authority, kind: str) -> None:
    certificate, key = authority.issue(kind)
    signer = ProvenanceConfig(c2pa_certificate=certificate, c2pa_key=key).signer()
    assert signer is not None
    manifest = read_manifest(signer.sign(file_of("png"), "image/png", ()), trust=authority.root.read_text())
    assert manifest.is_intact
    assert manifest.is_trusted


@pytest.mark.parametrize(
    ("issued", "code"),
    [
        ({"kind": "rsa1024"}, "c2pa_key_unsupported"),
        ({"kind": "k1"}, "c2pa_key_unsupported"),
        ({"kind": "ed448"}, "c2pa_key_unsupported"),
        ({"passphrase": b"secret"}, "c2pa_key_invalid"),
        ({"days": (-3, -1)}, "c2pa_certificate_not_valid_now"),
        ({"days": (1, 3)}, "c2pa_certificate_not_valid_now"),
        ({"usable": False}, "c2pa_certificate_unsuited"),
    ],
)
def test_a_certificate_of_no_use_is_refused_at_start(tmp_path: Path, issued: dict[str, Any], code: str) -> None:
    certificate, key = Authority(tmp_path).issue(**issued)
    with pytest.raises(ConfigError) as refused:
        ProvenanceConfig(c2pa_certificate=certificate, c2pa_key=key)
    (problem,) = refused.value.problems
    assert problem.code == code
    assert problem.value in (str(certificate), str(key))
    assert problem.remedy


def test_files_that_are_no_pair_are_refused(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    (certificate, key), (_, other) = authority.issue("p256"), authority.issue("p384")
    wrong = {
        "c2pa_key_of_another_certificate": (certificate, other),
        "c2pa_certificate_invalid": (key, key),
        "c2pa_key_invalid": (certificate, certificate),
        "c2pa_file_unreadable": (tmp_path / "none", key),
        "c2pa_incomplete": (certificate, None),
    }
    for code, (first, second) in wrong.items():
        with pytest.raises(ConfigError) as refused:
            ProvenanceConfig(c2pa_certificate=first, c2pa_key=second)
        assert [problem.code for problem in refused.value.problems] == [code]
        assert "PRIVATE" not in str(refused.value)
    refused_at_start = CliRunner().invoke(
        cli, ["serve", "--c2pa-certificate", str(certificate), "--c2pa-key", str(other)]
    )
    assert "Error: --c2pa-key = " in refused_at_start.output


def test_the_key_is_in_no_representation(authority: Authority) -> None:
    certificate, key = authority.issue()
    secret = key.read_text().splitlines()[1]
    credential = Credential(
        chain=certificate.read_bytes(), key=key.read_bytes(), algorithm="es256", end=datetime.now(UTC)
    )
    config = ProvenanceConfig(c2pa_certificate=certificate, c2pa_key=key)
    assert secret not in repr(credential) + repr(config) + json.dumps(config.fixed)


def test_a_certificate_that_expired_since_fails_the_picture_not_silently(tmp_path: Path) -> None:
    certificate, key = Authority(tmp_path).issue(days=(-3, -1))
    signer = ManifestSigner(
        Credential(chain=certificate.read_bytes(), key=key.read_bytes(), algorithm="es256", end=datetime.now(UTC))
    )
    with pytest.raises(EngineError, match=r"not valid at time of signing.*--c2pa-certificate"):
        signer.sign(file_of("png"), "image/png", ())


def test_threads_share_a_signer(writer: PictureWriter) -> None:
    with ThreadPoolExecutor(4) as threads:
        files = list(threads.map(lambda i: signed(writer, FORMATS[i % 3]), range(24)))
    assert all(read_manifest(content).is_intact for content in files)


def test_without_the_library_files_are_read_and_none_is_signed(
    tmp_path: Path, writer: PictureWriter, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(signed(writer, "png"))
    certificate, key = authority.issue()
    monkeypatch.setitem(sys.modules, "c2pa", None)
    code, facts = verified(path)
    assert (code, facts["signed"], facts["made by a model"]) == (0, None, True)
    assert "c2pa-python" in facts["not checked"]
    with pytest.raises(LithographError, match="pip install c2pa-python"):
        ProvenanceConfig(c2pa_certificate=certificate, c2pa_key=key)
    assert ProvenanceConfig().signer() is None


def test_a_manifest_on_another_host_is_not_fetched(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/manifest.c2pa"
        packet = (
            '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
            '<rdf:Description rdf:about="" xmlns:dcterms="http://purl.org/dc/terms/" '
            f'dcterms:provenance="{url}"/></rdf:RDF></x:xmpmeta>'
        )
        path = tmp_path / "picture.jpg"
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path, xmp=packet.encode())
        code, facts = verified(path)
        assert (code, facts["intact"]) == (1, False)
        assert url in facts["problems"][0]
        server.settimeout(0.5)
        with pytest.raises(TimeoutError):
            server.accept()


def test_deeply_nested_boxes_are_refused() -> None:
    from tests.service.wire.provenance.test_packet import png_with

    label = b"c2pa\0\x11\0\x10\x80\0\0\xaa\0\x38\x9b\x71\x03c2pa\0"
    box = (8 + len(label)).to_bytes(4) + b"jumd" + label
    depth, size = 2_900, 8 + len(box)
    nested = b"".join((size * (depth - i)).to_bytes(4) + b"jumb" + box for i in range(depth))
    with pytest.raises(ManifestUnreadableError, match="depth"):
        read_manifest(png_with((b"caBX", nested)))
