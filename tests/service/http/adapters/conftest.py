import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from longcat.storage.interface import Storage
from longcat.storage.opening import open_storage
from tests.conftest import RunningServer, serve

CAT = {"prompt": "一只猫", "seed": 3, "steps": 3}
KEY = {"Authorization": "Bearer secret"}


@pytest.fixture(scope="package")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return open_storage(tmp_path_factory.mktemp("adapters").as_uri())


@pytest.fixture(scope="package")
def adapters_server(tmp_path_factory: pytest.TempPathFactory, storage: Storage) -> Iterator[RunningServer]:
    options = ("--adapter-slots", "4", "--adapter-rank", "16", "--adapter-poll-seconds", "0.3", "--admin-key", "secret")
    with serve(tmp_path_factory.mktemp("server"), "--adapters", storage.uri, *options) as running:
        yield running


@pytest.fixture
def http(adapters_server: RunningServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=adapters_server.url, timeout=60) as session:
        yield session


def with_adapters(*choices: tuple[str, float], **fields: Any) -> dict[str, Any]:
    return CAT | fields | {"adapters": [{"name": name, "scale": scale} for name, scale in choices]}


def wait_until(http: httpx.Client, name: str, *, because: str = "", **expected: object) -> dict[str, Any]:
    deadline = time.monotonic() + 120
    while True:
        listed = http.get("/v1/adapters").json()["adapters"]
        found = next((a for a in listed if a["name"] == name), {})
        if expected.items() <= found.items() and because in (found["reason"] or ""):
            return dict(found)
        assert time.monotonic() < deadline, listed
        time.sleep(0.05)
