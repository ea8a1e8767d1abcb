"""A server with a signing certificate: a picture that is edited keeps the manifest that it came with."""

import base64
from collections.abc import Iterator

import httpx
import pytest

from service.wire.provenance.verification import SignedManifest, read_manifest
from tests.conftest import serve
from tests.service.http.replies import APPLE
from tests.service.http.test_editing import PHOTO, b64
from tests.service.wire.provenance.authority import Authority


@pytest.fixture(scope="module")
def signing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("signing")
    certificate, key = Authority(folder).issue()
    options = ("--c2pa-certificate", str(certificate), "--c2pa-key", str(key))
    with serve(folder, *options) as server, httpx.Client(base_url=server.url, timeout=120) as client:
        yield client


def manifest_of(content: bytes) -> SignedManifest:
    manifest = read_manifest(content)
    assert manifest is not None
    assert manifest.failures == ()
    return manifest


def edited(client: httpx.Client, source: bytes, **fields: object) -> httpx.Response:
    return client.post("/generate", json=APPLE | {"image": b64(source), "strength": 0.5, **fields})


def test_an_edit_has_the_manifest_of_its_picture_however_it_is_sent(signing: httpx.Client) -> None:
    source = signing.post("/generate", json=APPLE | {"output_format": "jpeg"}).content
    assert [action.split()[0] for action in manifest_of(source).actions] == ["c2pa.created"]
    location = edited(signing, source, **{"async": True}).headers["location"]
    while (job := signing.get(f"{location}/result")).status_code == 409:
        pass
    form = signing.post(
        "/v1/images/edits",
        data={"prompt": "a cat", "response_format": "b64_json", "size": "128x128"},
        files={"image": ("a.jpg", source, "image/jpeg")},
    )
    assert form.status_code == 200, form.text
    contents = [edited(signing, source).content, job.content, base64.b64decode(form.json()["data"][0]["b64_json"])]
    for content in contents:
        manifest = manifest_of(content)
        assert manifest.actions[0] == "c2pa.opened"
        assert manifest.ingredients[-1].endswith(", C2PA: Tests Ltd)")


def test_a_picture_whose_manifest_does_not_hold_is_edited_without_it(signing: httpx.Client) -> None:
    source = signing.post("/generate", json=APPLE | {"output_format": "webp"}).content
    changed = source.replace(b'"seed":1', b'"seed":2')
    assert changed != source
    for content in (changed, PHOTO):
        reply = edited(signing, content)
        assert reply.status_code == 200, reply.text
        assert "C2PA" not in manifest_of(reply.content).ingredients[-1]
