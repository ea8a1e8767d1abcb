"""Files of other programs, imported on the Adapters pages."""

from html import unescape
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from starlette.testclient import TestClient

from longcat.adapter import artifact as adapter
from longcat.storage.interface import Storage
from studio.app import create_app
from studio.config import StudioConfig
from tests.conftest import RunningServer, free_port
from tests.longcat.adapter.foreign.test_reading import PREFIXED, layers_of
from tests.studio.adapters.conftest import kohya_file
from tests.studio.context import studio_of
from tests.studio.generate.test_pages import HERE, HTMX, wait_for


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


def test_an_import_that_ends_without_a_reply_is_an_error_with_its_exit_code(
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
def test_a_file_that_is_no_adapter_is_refused_before_the_import(
    visitor: TestClient, name: str, file: tuple[str, bytes] | None, field: str, problem: str
) -> None:
    files = {"file": file} if file else {"other": ("y", b"")}
    reply = visitor.post("/adapters", data={"name": name}, files=files, headers=HTMX)
    assert reply.status_code == 422
    assert f'data-problem="{field}"' in reply.text
    assert problem in reply.text
