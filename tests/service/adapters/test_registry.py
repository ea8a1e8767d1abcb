"""The registry on both storages: the version of a name, and versions that are never served."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from longcat.adapter.publishing import remove_adapter, set_latest
from longcat.adapter.weights.lora import LoraLayer, LoraWeights
from longcat.errors import AdapterError, StorageError, UnknownAdapterError, UserError
from longcat.model.loading import Components
from longcat.storage.interface import Storage
from longcat.storage.opening import open_storage
from service.adapters.entry import RegistryEntry
from service.engine.slot_table import Adapter, SlotTable
from service.wire.messages import AdapterState
from tests.service.adapters.conftest import Service, put


def test_a_new_version_is_what_the_name_means_and_an_old_one_can_still_be_named(
    storage: Storage, service: Service, model: Components, tmp_path: Path, some_lora: Callable[..., LoraWeights]
) -> None:
    registry = service.registry
    with pytest.raises(UnknownAdapterError, match="adapter = ink: has no version in"):
        registry.resolve("ink")
    first = put(storage, model, tmp_path / "new", "ink", some_lora(1))
    assert registry.resolve("ink").manifest == first  # at once: no poll has found it yet
    second = put(storage, model, tmp_path / "new", "ink", some_lora(2))
    assert registry.resolve("ink").manifest == first
    registry.poll()
    assert registry.resolve("ink").digest == second.weights.sha256
    assert registry.resolve("ink@1").manifest == first
    assert service.state("ink") == (AdapterState.READY, 2, 2)
    with pytest.raises(UnknownAdapterError, match="no version 9"):
        registry.resolve("ink@9")
    set_latest(storage, "ink", 1)  # a rollback
    registry.poll()
    assert registry.resolve("ink").manifest == first
    remove_adapter(storage, "ink")
    registry.poll()
    for reference in ("ink", "ink@1"):
        with pytest.raises(UnknownAdapterError):
            registry.resolve(reference)


def test_a_name_that_is_being_read_by_a_poll_is_served_at_once(
    storage: Storage, service: Service, model: Components, tmp_path: Path, some_lora: Callable[..., LoraWeights]
) -> None:
    put(storage, model, tmp_path / "new", "ink", some_lora(1))
    service.registry._table._entries["ink"] = RegistryEntry(
        name="ink"
    )  # a poll leaves this entry visible while it downloads
    assert service.registry.resolve("ink").manifest.version == 1


def test_what_is_not_good_never_serves_and_the_version_before_does(
    storage: Storage, service: Service, model: Components, tmp_path: Path, some_lora: Callable[..., LoraWeights]
) -> None:
    good = put(storage, model, tmp_path / "new", "ink", some_lora(1))
    assert service.registry.resolve("ink").manifest == good
    broken = some_lora(2)
    name = next(iter(broken.layers))
    infinite = LoraLayer(broken.layers[name].down * float("inf"), broken.layers[name].up)
    cases = {
        "not finite": {"weights": LoraWeights(alpha=16, layers={**broken.layers, name: infinite})},
        "rank 17 exceeds the limit, 16": {"weights": some_lora(3, rank=17)},
        "is for base model embedded 000000000000": {"weights": broken, "base": "0" * 64},
        "of its modules do not exist in this model": {
            "weights": LoraWeights(alpha=1, layers={"x.to_q": LoraLayer(torch.zeros(1, 8), torch.zeros(8, 1))})
        },
    }
    for version, (reason, options) in enumerate(cases.items(), 2):
        put(storage, model, tmp_path / "new", "ink", **options)
        service.registry.poll()
        assert service.state("ink") == (AdapterState.OUTDATED, version, 1), reason
        assert reason in str(service.registry.status()[0].reason)
        assert service.registry.resolve("ink").manifest == good
    put(storage, model, tmp_path / "new", "bad", some_lora(3, rank=17))
    service.registry.poll()
    assert service.state("bad")[0] is AdapterState.REFUSED
    with pytest.raises(AdapterError, match=r"adapter = bad: version 1 is not served: .*rank 17"):
        service.registry.resolve("bad")
    last = put(storage, model, tmp_path / "new", "ink", some_lora(4))
    service.registry.poll()
    assert service.registry.resolve("ink").manifest == last
    assert service.state("ink")[0] is AdapterState.READY


def test_a_half_written_or_damaged_version_never_serves(
    storage: Storage, service: Service, model: Components, tmp_path: Path, some_lora: Callable[..., LoraWeights]
) -> None:
    good = put(storage, model, tmp_path / "new", "ink", some_lora(1))
    assert service.registry.resolve("ink").manifest == good
    etag = storage.read("ink/latest").etag
    storage.create("ink/2/adapter.safetensors", b"half")
    storage.replace("ink/latest", b"2\n", etag=etag)  # written directly: our own functions reject an incomplete version
    service.registry.poll()
    assert service.state("ink") == (AdapterState.OUTDATED, 2, 1)
    problem = service.registry.status()[0].problem
    assert problem is not None
    assert problem.code == "adapter_incomplete"
    assert service.registry.resolve("ink").manifest == good
    # Its manifest comes late: the next poll finds it, and weights that do not match.
    whole = good.weights.model_copy(update={"sha256": "0" * 64})
    manifest = good.model_copy(update={"version": 2, "weights": whole})
    storage.create("ink/2/manifest.json", manifest.model_dump_json().encode())
    service.registry.poll()
    assert "damaged" in str(service.registry.status()[0].reason)
    assert service.registry.resolve("ink").manifest == good


def test_while_storage_cannot_be_reached_what_is_loaded_keeps_serving(
    model: Components, tmp_path: Path, some_lora: Callable[..., LoraWeights]
) -> None:
    storage = open_storage((tmp_path / "root").as_uri())
    service = Service(storage, model, tmp_path / "downloads")
    first = put(storage, model, tmp_path / "new", "ink", some_lora(1))
    service.registry.poll()
    assert service.registry.resolve("ink").manifest == first
    assert service.registry.reachable
    (tmp_path / "root").rename(tmp_path / "away")
    (tmp_path / "root").write_text("a file where the volume was")
    service.registry.poll()
    assert not service.registry.reachable
    assert service.registry.resolve("ink").manifest == first
    with pytest.raises(StorageError):
        service.registry.resolve("other")
    (tmp_path / "root").unlink()
    (tmp_path / "away").rename(tmp_path / "root")
    second = put(storage, model, tmp_path / "new", "ink", some_lora(2))
    service.registry.poll()
    assert service.registry.reachable
    assert service.registry.resolve("ink").manifest == second


def test_memory_and_disk_are_bounded_and_what_fell_out_comes_back(
    model: Components, tmp_path: Path, some_lora: Callable[..., LoraWeights]
) -> None:
    storage = open_storage((tmp_path / "root").as_uri())
    manifests = [put(storage, model, tmp_path / "new", f"a{i}", some_lora(i)) for i in range(6)]
    size = manifests[0].weights.size_bytes
    service = Service(storage, model, tmp_path / "downloads", cache_bytes=2 * size + size // 2)
    for _ in range(2):
        for i, manifest in enumerate(manifests):
            adapter = service.registry.resolve(f"a{i}")
            assert adapter.manifest == manifest
            expected = some_lora(i)
            for name, layer in adapter.weights.layers.items():
                assert torch.equal(layer.down, expected.layers[name].down)
    assert len(list((tmp_path / "downloads").glob("*.safetensors"))) == 2


def test_pins_follow_the_name_and_are_limited_and_unloaded_names_stay_unloaded(
    storage: Storage, service: Service, model: Components, tmp_path: Path, some_lora: Callable[..., LoraWeights]
) -> None:
    registry = service.registry
    for name in ("ink", "oil"):
        put(storage, model, tmp_path / "new", name, some_lora(1))
    registry.poll()
    registry.pin("ink", pinned=True)
    assert service.pinned == ["ink@1"]
    put(storage, model, tmp_path / "new", "ink", some_lora(2))
    registry.poll()
    assert service.pinned == ["ink@2"]
    with pytest.raises(UserError, match="1 adapters are pinned already"):
        registry.pin("oil", pinned=True)
    with pytest.raises(AdapterError, match="give the name alone: ink"):
        registry.unload("ink@1")
    registry.unload("ink")
    assert service.pinned == []
    put(storage, model, tmp_path / "new", "ink", some_lora(3))
    registry.poll()
    assert service.state("ink")[0] is AdapterState.UNLOADED
    with pytest.raises(UnknownAdapterError, match="unloaded"):
        registry.resolve("ink")
    registry.load("ink")
    assert registry.resolve("ink").manifest.version == 3
    assert registry.load_required(["ink", "gone"]) == ["gone"]


def test_slots_are_held_while_in_use_and_the_least_recently_used_goes_first(
    model: Components, tmp_path: Path, some_lora: Callable[..., LoraWeights]
) -> None:
    storage = open_storage((tmp_path / "root").as_uri())
    service = Service(storage, model, tmp_path / "downloads")
    adapters: list[Adapter] = []
    for i in range(6):
        put(storage, model, tmp_path / "new", f"a{i}", some_lora(i))
        adapters.append(service.registry.resolve(f"a{i}"))
    table = SlotTable(service.slots)
    assert table.acquire(adapters[:3]) is not None
    assert table.acquire(adapters[3:4]) is not None
    assert table.acquire(adapters[4:5]) is None  # all four slots are in use
    assert table.acquire(adapters[2:3]) is not None  # two pictures with one adapter share its slot
    table.release(adapters[1:2])
    table.release(adapters[3:4])
    table.pin([adapters[3]])
    assert table.acquire(adapters[4:6]) is None  # one of the two idle slots is pinned
    assert table.acquire(adapters[5:6]) is not None
    assert [adapter.reference for adapter in table.loaded] == ["a0@1", "a3@1", "a2@1", "a5@1"]
    assert (table.loads, table.evictions) == (5, 1)
