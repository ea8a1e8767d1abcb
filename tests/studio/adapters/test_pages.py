"""The Adapters pages on the real service: list, try, pin, roll back, import, export and remove."""

import hashlib
import json
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import save_file
from starlette.testclient import TestClient

from longcat.adapter import artifact as adapter
from longcat.adapter.manifest import Training
from longcat.adapter.modules import lora_targets
from longcat.adapter.publishing import publish, set_latest
from longcat.adapter.weights.draft import draft_of, publish_lora
from longcat.adapter.weights.file import load_lora, save_lora
from longcat.model.flavour import Flavour
from longcat.model.loading import Components
from longcat.storage.interface import Storage
from longcat.storage.opening import open_storage
from studio.app import create_app
from studio.config import StudioConfig
from tests.conftest import RunningServer, free_port, serve
from tests.longcat.adapter.test_foreign import PREFIXED, layers_of
from tests.longcat.sampling.test_slots import random_lora
from tests.studio.context import studio_of
from tests.studio.generate.test_pages import FORM, HERE, HTMX, drawn, picture_of, wait_for


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return open_storage(tmp_path_factory.mktemp("adapters").as_uri())


@pytest.fixture(scope="module")
def adapters_server(tmp_path_factory: pytest.TempPathFactory, storage: Storage) -> Iterator[RunningServer]:
    options = ("--adapters", storage.uri, "--adapter-poll-seconds", "0.3", "--admin-key", "secret")
    with serve(tmp_path_factory.mktemp("server"), *options) as running:
        yield running


@pytest.fixture(scope="module")
def visitor(
    adapters_server: RunningServer, storage: Storage, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TestClient]:
    config = StudioConfig(
        home=tmp_path_factory.mktemp("studio"), service_url=adapters_server.url, service_admin_key="secret",
        adapters=storage.uri,
    )  # fmt: skip
    with TestClient(create_app(config), base_url=HERE) as client:
        wait_for(lambda: "pill-ready" in client.get("/service").text)
        yield client


@pytest.fixture(scope="module")
def trained(storage: Storage, model: Components, flavour: Flavour, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Publish two versions of ``wash``, with lineage and a validation picture; the second is the latest."""
    validation_image = tmp_path_factory.mktemp("proofs") / "cat.png"
    metadata = PngImagePlugin.PngInfo()
    metadata.add_itxt("lithograph-validation", json.dumps({"prompt": "一只猫"}))
    Image.new("RGB", (64, 64), "white").save(validation_image, pnginfo=metadata)
    config = {"learning_rate": 2e-4, "lora_rank": 4}
    training = Training(
        precision="no_change", config=config, config_hash=hashlib.sha256(b"config").hexdigest(),
        dataset_hash="d" * 64, steps=120, losses=(0.9, 0.5, 0.4), code_version="0.1.0",
    )  # fmt: skip
    for seed in (1, 2):
        weights = random_lora(lora_targets(model.transformer), rank=4, seed=seed)
        draft = draft_of(
            weights, flavour, origin="trained", trigger_words=("wash",), training=training,
            validation_images=("validation/cat.png",),
        )  # fmt: skip
        save_lora(weights, validation_image.parent / "wash.safetensors")
        manifest = publish(
            storage,
            "wash",
            draft,
            validation_image.parent / "wash.safetensors",
            extras={"validation/cat.png": validation_image},
        )
        set_latest(storage, "wash", manifest.version)
    return "wash"


def kohya_file(folder: Path) -> Path:
    named = {f"lora_unet_{name.removeprefix('transformer.').replace('.', '_')}": at for name, at in PREFIXED.items()}
    save_file(layers_of(named, down="lora_down", up="lora_up"), folder / "My Ink.safetensors")
    return folder / "My Ink.safetensors"


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


def test_a_version_says_where_it_came_from(visitor: TestClient, trained: str) -> None:
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


def test_another_programs_file_is_imported_and_served(visitor: TestClient, storage: Storage, tmp_path: Path) -> None:
    with kohya_file(tmp_path).open("rb") as stream:
        data = {"name": "my-ink", "trigger_words": "墨, ink wash"}
        reply = visitor.post("/adapters", data=data, files={"file": stream}, headers=HTMX)
    assert reply.status_code == 200, reply.text
    assert "my-ink@1: kohya format" in reply.text
    assert adapter.read_manifest(storage, "my-ink", 1).trigger_words == ("墨", "ink wash")
    wait_for(lambda: 'value="my-ink"' in visitor.get("/generate").text)


def test_a_file_that_does_not_fit_is_refused_with_its_reason(
    visitor: TestClient, storage: Storage, tmp_path: Path
) -> None:
    save_file({"transformer.nothing.lora_A.weight": torch.zeros(4, 8)}, tmp_path / "odd.safetensors")
    with (tmp_path / "odd.safetensors").open("rb") as stream:
        reply = visitor.post("/adapters", data={"name": "odd"}, files={"file": stream}, headers=HTMX)
    assert reply.status_code == 422
    assert "nothing" in reply.text
    assert str(tmp_path.parent) not in reply.text
    assert ("odd", 1) not in set(adapter.list_versions(storage))


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"transformer.nothing.lora_A.weight": torch.zeros(4, 8)}, "在此模型中都不存在"),
        ({"x": torch.zeros(1)}, "不是已知格式的 LoRA 键"),
        ({}, "没有 LoRA 权重"),
        (layers_of(PREFIXED, rank=200), "rank 200 超过上限 128"),
    ],
)
def test_a_refused_file_has_its_reason_in_chinese(
    visitor: TestClient, tmp_path: Path, tensors: dict[str, torch.Tensor], reason: str
) -> None:
    save_file(tensors, tmp_path / "墨.safetensors")
    with (tmp_path / "墨.safetensors").open("rb") as stream:
        reply = visitor.post(
            "/adapters", data={"name": "odd"}, files={"file": stream}, headers=HTMX | {"Accept-Language": "zh"}
        )
    assert reply.status_code == 422
    assert "文件未导入。" in reply.text
    assert reason in reply.text
    assert "adapter_model" not in reply.text
    assert "incoming" not in reply.text


def test_an_import_that_ends_without_a_reply_is_told_with_its_exit_code(
    visitor: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LITHOGRAPH_ADAPTERS_IMPORT_MAX_RANK", "none")  # a usage error of the child: no JSON
    with kohya_file(tmp_path).open("rb") as stream:
        reply = visitor.post(
            "/adapters", data={"name": "odd"}, files={"file": stream}, headers=HTMX | {"Accept-Language": "zh"}
        )
    assert reply.status_code == 422
    assert "导入程序异常退出（退出码 2）：" in reply.text


def test_storage_that_cannot_be_written_is_no_fault_of_the_file(adapters_server: RunningServer, tmp_path: Path) -> None:
    (tmp_path / "store").write_bytes(b"a file where the directory would be")
    config = StudioConfig(
        home=tmp_path / "studio", service_url=adapters_server.url, adapters=(tmp_path / "store").as_uri()
    )
    with TestClient(create_app(config), base_url=HERE) as client, kohya_file(tmp_path).open("rb") as stream:
        reply = client.post(
            "/adapters", data={"name": "ink"}, files={"file": stream}, headers=HTMX | {"Accept-Language": "zh"}
        )
    assert reply.status_code == 503
    assert "无法使用适配器存储。" in reply.text
    assert "无法读写" in reply.text


@pytest.mark.parametrize(
    ("info", "problem"),
    [(None, "has not reported its own yet"), ({"model": {"flavour": "mine"}}, "where the service's model mine is")],
)
def test_an_import_for_a_model_that_is_not_known_here_is_refused_with_what_to_do(
    tmp_path: Path, info: dict[str, Any] | None, problem: str
) -> None:
    config = StudioConfig(
        home=tmp_path / "studio", service_url=f"http://127.0.0.1:{free_port()}", adapters=(tmp_path / "store").as_uri()
    )
    app = create_app(config)
    with TestClient(app, base_url=HERE) as client, kohya_file(tmp_path).open("rb") as stream:
        studio_of(client).service.info = info  # the last reply of a service that cannot be reached now
        reply = client.post("/adapters", data={"name": "ink"}, files={"file": stream}, headers=HTMX)
    assert reply.status_code == 422
    assert problem in unescape(reply.text)


@pytest.mark.parametrize(
    ("name", "file", "field", "problem"),
    [
        ("ink", ("x.pt", b"PK"), "file", "x.pt: not one .safetensors file; give one"),
        ("ink", ("x.safetensors", b"\x80\x02"), "file", "no safetensors file"),
        ("ink", ("x.safetensors", b"\xff" * 64), "file", "no safetensors file"),
        ("Ink!", ("x.safetensors", b""), "name", "Ink!: not allowed as a name"),
        ("ink@2", ("x.safetensors", b""), "name", "ink@2: not allowed as a name"),
        ("", ("x.safetensors", b""), "name", "missing; add it"),
        ("ink", None, "file", "missing; add it"),
    ],
)
def test_what_is_no_adapter_is_refused_at_the_door(
    visitor: TestClient, name: str, file: tuple[str, bytes] | None, field: str, problem: str
) -> None:
    files = {"file": file} if file else {"other": ("y", b"")}
    reply = visitor.post("/adapters", data={"name": name}, files=files, headers=HTMX)
    assert reply.status_code == 422
    assert f'data-problem="{field}"' in reply.text
    assert problem in reply.text


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


def test_storage_that_cannot_be_reached_is_said(tmp_path: Path) -> None:
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
