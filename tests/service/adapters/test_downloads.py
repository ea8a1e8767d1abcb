"""The disk cache: even with replaced or damaged files, the weights in memory are the published ones."""

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from longcat.adapter.manifest import Manifest
from longcat.adapter.weights.lora import LoraWeights
from longcat.model.loading import Components
from longcat.storage.files import FileStorage
from service.adapters.downloads import Downloads
from tests.service.adapters.conftest import Service, put

POISONS: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: os.truncate(path, 100),
    "other bytes": lambda path: path.write_bytes(os.urandom(path.stat().st_size)),
    "directory": lambda path: (path.unlink(), path.mkdir(), (path / "x").touch()),
    "link to a device": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
    "FIFO": lambda path: (path.unlink(), os.mkfifo(path)),
    "gone": Path.unlink,
}


@pytest.fixture
def manifests(model: Components, tmp_path: Path, some_lora: Callable[..., LoraWeights]) -> list[Manifest]:
    storage = FileStorage(tmp_path / "root")
    return [put(storage, model, tmp_path / "new", f"a{i}", some_lora(i)) for i in range(3)]


@pytest.mark.parametrize("poison", POISONS)
def test_a_file_that_is_wrong_is_made_again(
    manifests: list[Manifest], model: Components, tmp_path: Path, poison: str, some_lora: Callable[..., LoraWeights]
) -> None:
    storage, manifest = FileStorage(tmp_path / "root"), manifests[0]
    Service(storage, model, tmp_path / "downloads").registry.resolve("a0")
    path = tmp_path / "downloads" / f"{manifest.weights.sha256}.safetensors"
    content = path.read_bytes()
    POISONS[poison](path)
    weights = Service(storage, model, tmp_path / "downloads").registry.resolve("a0").weights
    expected = some_lora(0)
    assert all(torch.equal(layer.down, expected.layers[name].down) for name, layer in weights.layers.items())
    assert path.read_bytes() == content


def test_what_is_in_memory_does_not_change_with_its_file(
    manifests: list[Manifest], model: Components, tmp_path: Path, some_lora: Callable[..., LoraWeights]
) -> None:
    service = Service(FileStorage(tmp_path / "root"), model, tmp_path / "downloads")
    weights = service.registry.resolve("a0").weights
    path = tmp_path / "downloads" / f"{manifests[0].weights.sha256}.safetensors"
    with path.open("r+b") as stream:
        stream.write(bytes(path.stat().st_size))
        stream.truncate(100)
    expected = some_lora(0)
    assert all(torch.equal(layer.up, expected.layers[name].up) for name, layer in weights.layers.items())


SHARER = """
import sys
from pathlib import Path
from longcat.adapter.artifact import read_manifest
from longcat.storage.files import FileStorage
from service.adapters.downloads import Downloads
import hashlib
root, folder = map(Path, sys.argv[1:])
storage = FileStorage(root)
manifests = [read_manifest(storage, f"a{i}", 1) for i in range(3)]
downloads = Downloads(folder, max_bytes=manifests[0].weights.size_bytes)
for _ in range(40):
    for manifest in manifests:
        assert hashlib.sha256(downloads.content(storage, manifest)).hexdigest() == manifest.weights.sha256
"""


def test_processes_share_a_directory_that_has_room_for_one_file(manifests: list[Manifest], tmp_path: Path) -> None:
    command = [sys.executable, "-c", SHARER, str(tmp_path / "root"), str(tmp_path / "shared")]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    assert {path.stat().st_size for path in (tmp_path / "shared").iterdir()} == {manifests[0].weights.size_bytes}


def test_concurrent_requests_share_one_download(manifests: list[Manifest], model: Components, tmp_path: Path) -> None:
    service = Service(FileStorage(tmp_path / "root"), model, tmp_path / "downloads")
    with ThreadPoolExecutor(8) as pool:
        adapters = list(pool.map(service.registry.resolve, ["a0"] * 8))
    assert len({id(adapter.weights) for adapter in adapters}) == 1
    downloads = Downloads(tmp_path / "downloads", max_bytes=2**30)
    assert downloads.holds(manifests[0])
