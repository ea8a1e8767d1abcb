"""The adapters that come with a model, behind those of its operator."""

from pathlib import Path

import pytest

from longcat.errors import StorageMissingError
from longcat.storage.files import FileStorage
from longcat.storage.interface import Storage
from longcat.storage.layered import LayeredStorage


def filled(folder: Path, *keys: str) -> Storage:
    folder.mkdir()
    storage = FileStorage(folder)
    for key in keys:
        storage.create(key, f"{folder.name} {key}".encode())
    return storage


def found(storage: Storage) -> list[str]:
    return sorted(entry.key for entry in storage.find("*/latest", "*/*/manifest.json"))


def test_a_name_in_front_hides_the_one_behind_as_a_whole(tmp_path: Path) -> None:
    front = filled(tmp_path / "front", "ink/latest", "ink/1/manifest.json")
    back = filled(tmp_path / "back", "ink/latest", "ink/2/manifest.json", "turbo/latest", "turbo/1/manifest.json")
    both = LayeredStorage(front, back)
    assert found(both) == ["ink/1/manifest.json", "ink/latest", "turbo/1/manifest.json", "turbo/latest"]
    assert both.read("ink/latest").content == b"front ink/latest"
    assert both.read("turbo/latest").content == b"back turbo/latest"
    both.download("turbo/1/manifest.json", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"back turbo/1/manifest.json"
    for missing in ("ink/2/manifest.json", "red/latest"):
        with pytest.raises(StorageMissingError):
            both.read(missing)
        with pytest.raises(StorageMissingError):
            both.download(missing, tmp_path / "none")


def test_changes_go_to_the_front_and_the_back_shows_again_afterwards(tmp_path: Path) -> None:
    both = LayeredStorage(filled(tmp_path / "front"), filled(tmp_path / "back", "turbo/latest"))
    etag = both.create("turbo/latest", b"mine")
    both.replace("turbo/latest", b"mine, newer", etag=etag)
    assert both.read("turbo/latest").content == b"mine, newer"
    assert [entry.key for entry in both.list("turbo/")] == ["turbo/latest"]
    both.delete("turbo/latest")
    assert both.read("turbo/latest").content == b"back turbo/latest"
    both.delete("turbo/latest")
    assert found(both) == ["turbo/latest"]
