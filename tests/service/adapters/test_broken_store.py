"""An S3 store that denies, breaks off, hangs or drips for one object, and works for the others."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loadtest.traffic.object_store import Fault, ObjectStore, serving
from longcat.adapter.weights.lora import LoraWeights
from longcat.errors import AdapterError, StorageError
from longcat.model.loading import Components
from longcat.storage import s3
from longcat.storage.files import FileStorage
from longcat.storage.opening import open_storage
from service.wire.messages import AdapterState
from tests.service.adapters.conftest import Service, put


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "any")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr(s3, "_REQUEST_SECONDS", 3.0)
    (tmp_path / "root").mkdir()
    with serving(ObjectStore(tmp_path / "root")) as running:
        yield running


@pytest.fixture
def service(store: ObjectStore, model: Components, tmp_path: Path, some_lora: Callable[..., LoraWeights]) -> Service:
    for seed, name in enumerate(("ink", "oil"), 1):
        put(FileStorage(store.root), model, tmp_path / "new", name, some_lora(seed))
    return Service(open_storage("s3://adapters", endpoint_url=store.url), model, tmp_path / "downloads")


REASONS: dict[Fault, str] = {
    "deny": "AccessDenied",
    "fail": "InternalError",
    "reset": "cannot be reached|has not been read",
    "hang": "has not been read",
    "drip": "has not been read",
}


@pytest.mark.heavy
@pytest.mark.parametrize("fault", REASONS)
@pytest.mark.parametrize("pattern", ["ink/latest", "ink/1/manifest.json", "ink/1/adapter.safetensors", "ink/.*"])
def test_an_object_that_cannot_be_read_is_its_adapters_problem(
    service: Service,
    store: ObjectStore,
    model: Components,
    tmp_path: Path,
    some_lora: Callable[..., LoraWeights],
    fault: Fault,
    pattern: str,
) -> None:
    store.faults[pattern] = fault
    service.registry.poll()
    with pytest.raises(AdapterError, match=REASONS[fault]):
        service.registry.resolve("ink")
    begin = time.monotonic()
    with pytest.raises(AdapterError, match=REASONS[fault]):
        service.registry.resolve("ink")  # known already: nothing is read for it
    assert time.monotonic() - begin < 0.5
    new = put(FileStorage(store.root), model, tmp_path / "new", "oil", some_lora(3))
    service.registry.poll()
    assert service.registry.reachable
    assert service.state("ink")[0] is AdapterState.REFUSED
    assert service.registry.resolve("oil").manifest == new


def test_a_store_that_denies_all_is_unreachable_and_what_is_loaded_serves(service: Service, store: ObjectStore) -> None:
    service.registry.poll()
    first = service.registry.resolve("ink").manifest
    store.faults[".*"] = "deny"
    service.registry.poll()
    assert not service.registry.reachable
    assert service.registry.resolve("ink").manifest == first
    with pytest.raises(StorageError):
        service.registry.resolve("oil")
    store.faults.clear()
    service.registry.poll()
    assert service.registry.reachable
    assert service.registry.resolve("oil").manifest.reference == "oil@1"


def test_listing_may_be_denied_where_reading_is_allowed(service: Service, store: ObjectStore) -> None:
    store.faults["list"] = "deny"
    service.registry.poll()
    assert not service.registry.reachable
    assert service.registry.resolve("ink").manifest.reference == "ink@1"
    assert service.registry.load_required(["oil", "gone"]) == ["gone"]


def test_only_required_adapters_are_downloaded_before_they_are_requested(service: Service, store: ObjectStore) -> None:
    assert service.registry.load_required(["oil"]) == []
    assert store.requests == {"latest": 1, "manifest.json": 1, "adapter.safetensors": 1}
    service.registry.poll()
    assert [(status.name, status.verified) for status in service.registry.status()] == [("ink", False), ("oil", True)]
    assert store.requests["adapter.safetensors"] == 1
    service.registry.pin("ink", pinned=True)
    assert store.requests["adapter.safetensors"] == 2


def test_with_prefetch_all_are_downloaded(
    store: ObjectStore, model: Components, tmp_path: Path, some_lora: Callable[..., LoraWeights]
) -> None:
    for seed, name in enumerate(("ink", "oil"), 1):
        put(FileStorage(store.root), model, tmp_path / "new", name, some_lora(seed))
    storage = open_storage("s3://adapters", endpoint_url=store.url)
    service = Service(storage, model, tmp_path / "downloads", prefetch=True)
    service.registry.poll()
    assert [status.verified for status in service.registry.status()] == [True, True]
    assert service.downloads == 2
    put(FileStorage(store.root), model, tmp_path / "new", "wax", some_lora(3))
    service.registry.poll()
    assert service.downloads == 3
