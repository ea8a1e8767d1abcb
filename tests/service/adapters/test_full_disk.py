"""A server with a full temporary directory: it generates, counts, names the disk, and recovers once there is space."""

from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest

from longcat.adapter.weights.lora import LoraWeights
from longcat.model.loading import Components
from longcat.storage.opening import open_storage
from tests.conftest import fill, serve
from tests.service.adapters.conftest import put
from tests.service.http.replies import metric
from tests.service.test_serving import APPLE

MIB = 2**20


def styled(http: httpx.Client, name: str) -> httpx.Response:
    return http.post("/generate", json=APPLE | {"adapters": [{"name": name}]})


def test_a_full_disk_kills_nothing_and_is_named(
    small_disk: Path,
    tmp_path: Path,
    model: Components,
    some_lora: Callable[..., LoraWeights],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    storage = open_storage((tmp_path / "adapters").as_uri())
    names = [f"style-{number}" for number in range(4)]
    for seed, name in enumerate(names):
        put(storage, model, tmp_path / "work", name, some_lora(seed, rank=16))
    size = next((tmp_path / "adapters" / "style-0" / "1").glob("*.safetensors")).stat().st_size
    monkeypatch.setenv("TMPDIR", str(small_disk))
    with (
        serve(tmp_path, "--adapters", storage.uri, "--adapter-cache-mib", "1") as server,
        httpx.Client(base_url=server.url, timeout=120) as http,
    ):
        family = {process.pid for process in psutil.Process(server.process.pid).children(recursive=True)}
        plain = http.post("/generate", json=APPLE).content
        replies = {name: styled(http, name) for name in names}
        assert {reply.status_code for reply in replies.values()} == {200}
        cached = list(small_disk.glob("lithograph-run-*/adapters/*.safetensors"))
        assert cached
        assert sum(path.stat().st_size for path in cached) < 8 * MIB * 0.95 - 18 * 65536, size

        before = metric(http, "lithograph_requests_total", status="200")
        filler = fill(small_disk)
        for path in cached:
            path.unlink()
        fill(small_disk)
        for _ in range(3):
            reply = http.post("/generate", json=APPLE)
            assert reply.status_code == 200
            assert reply.content == plain
        assert metric(http, "lithograph_requests_total", status="200") == before + 3
        refused = [styled(http, name) for name in names]
        full = [reply.json()["error"] for reply in refused if reply.status_code != 200]
        assert full, "all of them are still in memory"
        assert {error["code"] for error in full} == {"disk_full"}
        assert all(
            str(small_disk) in error["message"] and "free space on that disk" in error["message"] for error in full
        )
        assert not list(small_disk.glob("lithograph-run-*/adapters/.fetch-*"))

        filler.unlink()
        for name in names:
            assert styled(http, name).content == replies[name].content
        assert family == {process.pid for process in psutil.Process(server.process.pid).children(recursive=True)}
        assert "Traceback" not in server.log_text()
    assert not list(small_disk.glob("lithograph-*"))
