"""A server with adapters, for the clients of other programs' endpoints."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from longcat.adapter.modules import lora_targets
from longcat.adapter.weights.file import save_lora
from longcat.model.loading import Components
from longcat.storage.interface import Storage
from longcat.storage.opening import open_storage
from tests.conftest import RunningServer, serve
from tests.longcat.sampling.test_slots import random_lora
from tests.service.adapters.conftest import put

APPLE = {"prompt": "a red apple", "seed": 1, "steps": 3}
KEY = {"Authorization": "Bearer secret"}


@pytest.fixture(scope="package")
def storage(tmp_path_factory: pytest.TempPathFactory, model: Components) -> Storage:
    folder = tmp_path_factory.mktemp("adapters")
    storage = open_storage(folder.as_uri())
    put(storage, model, tmp_path_factory.mktemp("files"), "ink", random_lora(lora_targets(model.transformer), seed=1))
    return storage


@pytest.fixture(scope="package")
def foreign(tmp_path_factory: pytest.TempPathFactory, model: Components) -> Path:
    """Return a directory of LoRA files of another program."""
    folder = tmp_path_factory.mktemp("foreign")
    save_lora(random_lora(lora_targets(model.transformer), seed=7), folder / "style.safetensors")
    (folder / "broken.safetensors").write_bytes(b"nothing of the kind")
    return folder


@pytest.fixture(scope="package")
def running(tmp_path_factory: pytest.TempPathFactory, storage: Storage, foreign: Path) -> Iterator[RunningServer]:
    options: tuple[str, ...] = ("--adapters", storage.uri, "--adapter-rank", "16", "--adapter-poll-seconds", "0.3")
    options += ("--require-adapter", "ink", "--admin-key", "secret", "--import-from", str(foreign))
    with serve(tmp_path_factory.mktemp("server"), *options) as server:
        yield server


@pytest.fixture
def http(running: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=running.url, timeout=60) as session:
        yield session


def load(http: httpx.Client, name: str, path: object, **fields: Any) -> httpx.Response:
    return http.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(path)} | fields, headers=KEY)


def unload(http: httpx.Client, name: str) -> httpx.Response:
    return http.post("/v1/unload_lora_adapter", json={"lora_name": name}, headers=KEY)
