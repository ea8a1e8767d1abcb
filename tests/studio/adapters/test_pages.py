"""The Adapters pages on the real service: list, try, pin, roll back, import, export and remove."""

import hashlib
import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from longcat.adapter import artifact as adapter
from longcat.adapter.modules import lora_targets
from longcat.adapter.publishing import set_latest
from longcat.adapter.weights.draft import draft_of, publish_lora
from longcat.adapter.weights.file import load_lora
from longcat.model.flavour import Flavour
from longcat.model.loading import Components
from longcat.storage.interface import Storage
from studio.app import create_app
from studio.config import StudioConfig
from tests.longcat.sampling.test_slots import random_lora
from tests.studio.context import studio_of
from tests.studio.generate.test_pages import FORM, HERE, HTMX, drawn, picture_of, wait_for


def test_an_adapter_is_listed_with_what_the_service_makes_of_it(visitor: TestClient, trained: str) -> None:
    def the_service_has_the_latest() -> bool:
        shelf = visitor.get("/adapters/list").text
        return "pill-ready" in shelf and '<span class="number">@2</span>' in shelf

    wait_for(the_service_has_the_latest)
    page = visitor.get("/adapters").text
    assert "wash@2" in page
    assert "wash@1" in page
    assert "120 steps" in page
    assert f'href="/generate?adapter={trained}"' in page
    digest = re.findall(r"/adapters/list\?seen=(\w+)", page)[0]
    assert visitor.get(f"/adapters/list?seen={digest}").status_code == 204


def test_a_version_shows_its_origin(visitor: TestClient, trained: str) -> None:
    page = visitor.get(f"/adapters/{trained}/2").text
    for fact in ("learning_rate", "0.0002", "dddddddddddd", "from 0.9000 to 0.4000", "一只猫", "Lithograph 0.1.0"):
        assert fact in page
    assert "<polyline points=" in page
    picture = visitor.get(f"/adapters/{trained}/2/pictures/validation/cat.png")
    assert picture.headers["content-type"] == "image/png"
    assert visitor.get(f"/adapters/{trained}/2/pictures/adapter.safetensors").status_code == 404
    assert visitor.get(f"/adapters/{trained}/9").status_code == 404
    assert visitor.get("/adapters/nobody/1").status_code == 404


def test_the_file_is_the_one_that_was_published(
    visitor: TestClient, trained: str, storage: Storage, tmp_path: Path
) -> None:
    reply = visitor.get(f"/adapters/{trained}/1/file")
    assert reply.headers["content-disposition"].endswith('"wash-1.safetensors"')
    manifest = adapter.read_manifest(storage, "wash", 1)
    assert hashlib.sha256(reply.content).hexdigest() == manifest.weights.sha256
    (tmp_path / "it.safetensors").write_bytes(reply.content)
    assert load_lora(tmp_path / "it.safetensors").rank == 4


def test_a_name_can_mean_an_earlier_version_and_a_later_one_again(
    visitor: TestClient, trained: str, storage: Storage
) -> None:
    for version in (1, 2):
        reply = visitor.post(f"/adapters/{trained}/{version}/latest", headers=HTMX)
        assert reply.status_code == 200
        assert adapter.latest_version(storage, trained) == version
        wait_for(lambda version=version: f"@{version}</span>" in visitor.get("/adapters/list").text)


def test_an_adapter_can_be_pinned_and_let_go(visitor: TestClient, trained: str) -> None:
    wait_for(lambda: "pill-ready" in visitor.get("/adapters/list").text)
    assert "pinned" in visitor.post(f"/adapters/{trained}/pin", headers=HTMX).text
    assert '/pin"' in visitor.post(f"/adapters/{trained}/unpin", headers=HTMX).text
    assert visitor.post(f"/adapters/{trained}/explode", headers=HTMX).status_code == 404
    assert visitor.post("/adapters/%00/pin", headers=HTMX).status_code == 422


def test_trying_one_puts_it_into_the_form_and_a_picture_is_compared_with_none(
    visitor: TestClient, trained: str
) -> None:
    page = visitor.get(f"/generate?adapter={trained}@1").text
    assert re.search(r'name="adapter" value="wash@1" checked', page)
    form = FORM | {"adapter": "wash@1", "scale:wash@1": "1.5", "seed": "5"}
    picture = drawn(visitor, visitor.post("/generate", data=form, headers=HTMX).text)[0]
    applied = picture_of(visitor, picture).recipe.adapters
    assert [(use.name, use.scale) for use in applied] == [("wash@1", 1.5)]
    reply = visitor.post(f"/gallery/{picture}/compare", headers=HTMX)
    assert reply.headers["hx-redirect"] == f"/gallery/{picture}/compare"
    gallery = studio_of(visitor).gallery
    wait_for(lambda: gallery.counterpart(picture) is not None)
    without = gallery.counterpart(picture)
    assert without.recipe == picture_of(visitor, picture).recipe.without_adapters()
    page = visitor.get(f"/gallery/{picture}/compare").text
    assert all(f"/gallery/{one}/picture.png" in page for one in (picture, without.id))
    files = [visitor.get(f"/gallery/{one}/picture.png").content for one in (picture, without.id)]
    assert files[0] != files[1]


def test_removing_a_version_and_then_all(
    visitor: TestClient, storage: Storage, model: Components, flavour: Flavour
) -> None:
    for seed in (1, 2):
        weights = random_lora(lora_targets(model.transformer), rank=2, seed=seed)
        manifest = publish_lora(storage, "gone", draft_of(weights, flavour, origin="trained"), weights)
        set_latest(storage, "gone", manifest.version)
    refused = visitor.delete("/adapters/gone/2", headers=HTMX)
    assert refused.status_code == 422
    assert "is the latest" in refused.text
    assert "gone@1" not in visitor.delete("/adapters/gone/1", headers=HTMX).text
    assert "gone@2" not in visitor.delete("/adapters/gone", headers=HTMX).text
    assert visitor.delete("/adapters/gone", headers=HTMX).status_code == 404


def test_unreachable_storage_is_shown_as_an_error(tmp_path: Path) -> None:
    (tmp_path / "adapters").write_text("a file where a directory should be")
    visitor = TestClient(create_app(StudioConfig(home=tmp_path)), base_url=HERE)
    reply = visitor.get("/adapters", headers={"Accept": "text/html"})
    assert reply.status_code == 503
    assert "storage cannot be used" in reply.text


@pytest.mark.parametrize("version", ["9" * 5000, "0", "-1", "1.5", "x", "1e3", "٣", "%00", "1000000000", "%20"])
def test_an_address_with_an_impossible_version_is_no_page(tmp_path: Path, version: str) -> None:
    visitor = TestClient(create_app(StudioConfig(home=tmp_path)), base_url=HERE)
    for method, path in (
        ("GET", ""),
        ("DELETE", ""),
        ("GET", "/file"),
        ("GET", "/pictures/a.png"),
        ("POST", "/latest"),
    ):
        reply = visitor.request(method, f"/adapters/ink/{version}{path}")
        assert reply.status_code == 404, (method, path)
        assert reply.json()["error"]["code"] == "not_found"
