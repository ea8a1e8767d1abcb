"""Content that is replaced under a name or a version: pictures follow the content of storage."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from longcat.adapter.artifact import list_versions
from longcat.adapter.weights.lora import LoraWeights
from longcat.errors import AdapterError
from longcat.model.loading import Components
from longcat.storage.files import FileStorage
from longcat.storage.interface import Storage
from service.engine.slot_table import SlotTable
from service.wire.messages import AdapterState
from tests.service.adapters.conftest import Service, put


def is_same(weights: LoraWeights, other: LoraWeights) -> bool:
    return all(torch.equal(layer.down, other.layers[name].down) for name, layer in weights.layers.items())


@pytest.mark.parametrize("reference", ["live", "live@1"])
def test_a_link_that_is_turned_means_other_weights(
    model: Components, tmp_path: Path, some_lora: Callable[..., LoraWeights], reference: str
) -> None:
    for seed, release in enumerate(("blue", "green"), 1):
        put(FileStorage(tmp_path / release), model, tmp_path / "new", "live", some_lora(seed))
    root = tmp_path / "root"
    root.mkdir()
    (root / "live").symlink_to(tmp_path / "blue" / "live")
    service = Service(FileStorage(root), model, tmp_path / "downloads")
    table = SlotTable(service.slots)
    service.registry.poll()
    blue = service.registry.resolve(reference)
    assert is_same(blue.weights, some_lora(1))
    (blue_slot,) = table.acquire([blue]) or ()
    (root / "live").unlink()
    (root / "live").symlink_to(tmp_path / "green" / "live")
    service.registry.poll()
    green = service.registry.resolve(reference)
    assert is_same(green.weights, some_lora(2))
    assert table.acquire([green]) not in (None, (blue_slot,))
    assert service.status("live").sha256 == green.digest


@pytest.mark.parametrize("reference", ["ink", "ink@1"])
def test_a_version_that_is_replaced_means_other_weights(
    storage: Storage,
    service: Service,
    model: Components,
    tmp_path: Path,
    some_lora: Callable[..., LoraWeights],
    reference: str,
) -> None:
    put(storage, model, tmp_path / "new", "ink", some_lora(1))
    service.registry.poll()
    assert is_same(service.registry.resolve(reference).weights, some_lora(1))
    for entry in list(storage.list("ink/")):
        storage.delete(entry.key)
    put(storage, model, tmp_path / "new", "ink", some_lora(2))  # again version 1, and on S3 with the same latest
    service.registry.poll()
    assert is_same(service.registry.resolve(reference).weights, some_lora(2))


def test_two_names_with_the_same_weights_share_them(
    storage: Storage, service: Service, model: Components, tmp_path: Path, some_lora: Callable[..., LoraWeights]
) -> None:
    for name in ("ink", "oil"):
        put(storage, model, tmp_path / "new", name, some_lora(1))
    ink, oil = service.registry.resolve("ink"), service.registry.resolve("oil")
    assert ink.weights is oil.weights
    assert (ink.manifest.reference, oil.manifest.reference) == ("ink@1", "oil@1")


def test_linked_adapters_are_listed_looked_at_and_drawn(
    model: Components, tmp_path: Path, some_lora: Callable[..., LoraWeights]
) -> None:
    elsewhere, root = tmp_path / "elsewhere", tmp_path / "root"
    put(FileStorage(elsewhere), model, tmp_path / "new", "linked", some_lora(1))
    root.mkdir()
    (root / "..data").symlink_to(elsewhere)  # as Kubernetes mounts a volume
    (root / "linked").symlink_to("..data/linked")
    (root / "loop").symlink_to("loop")
    (root / "up").symlink_to("..")
    service = Service(FileStorage(root), model, tmp_path / "downloads")
    assert list(list_versions(FileStorage(root))) == [("linked", 1)]
    for _ in range(3):
        service.registry.poll()
        assert service.state("linked") == (AdapterState.READY, 1, 1)
        assert service.registry.resolve("linked").manifest.reference == "linked@1"
    with pytest.raises(AdapterError, match="symbolic link"):
        service.registry.resolve("loop")
    assert [status.name for status in service.registry.status()] == ["linked", "loop"]
    shutil.rmtree(elsewhere)
    service.registry.poll()
    assert [status.name for status in service.registry.status()] == ["loop"]


def test_weights_that_turn_out_bad_leave_the_version_before(
    storage: Storage, service: Service, model: Components, tmp_path: Path, some_lora: Callable[..., LoraWeights]
) -> None:
    first = put(storage, model, tmp_path / "new", "ink", some_lora(1))
    service.registry.poll()
    put(storage, model, tmp_path / "new", "ink", some_lora(2))
    storage.delete("ink/2/adapter.safetensors")
    storage.create("ink/2/adapter.safetensors", b"other")
    service.registry.poll()
    assert service.state("ink") == (AdapterState.READY, 2, 2)  # no request has needed the weights
    assert service.registry.resolve("ink").manifest == first
    assert service.state("ink") == (AdapterState.OUTDATED, 2, 1)
    service.registry.poll()
    assert service.state("ink") == (AdapterState.OUTDATED, 2, 1)
    assert service.status("ink").verified
