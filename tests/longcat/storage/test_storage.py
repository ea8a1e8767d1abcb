"""Storage on a directory and on a real S3 server (SeaweedFS): the same guarantees on both."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from longcat.errors import StorageConflictError, StorageError, StorageMissingError
from longcat.storage.files import FileStorage
from longcat.storage.interface import Storage
from longcat.storage.opening import open_storage
from tests.conftest import BUCKET, free_port

LARGE = os.urandom(20 * 2**20)  # over the size from which S3 takes several parts


def test_what_is_created_is_read_listed_replaced_and_deleted(storage: Storage) -> None:
    assert list(storage.list()) == []
    first = storage.create("ink/1/manifest.json", b"one")
    storage.create("ink/latest", b"1")
    storage.create("oil/1/manifest.json", b"uno")
    assert storage.read("ink/1/manifest.json").content == b"one"
    assert storage.read("ink/1/manifest.json").etag == first
    entries = {entry.key: entry for entry in storage.list("ink/")}
    assert entries.keys() == {"ink/1/manifest.json", "ink/latest"}
    assert (entries["ink/1/manifest.json"].size_bytes, entries["ink/1/manifest.json"].etag) == (3, first)
    latest = storage.read("ink/latest")
    changed = storage.replace("ink/latest", b"2", etag=latest.etag)
    assert changed != latest.etag
    assert storage.read("ink/latest").content == b"2"
    storage.delete("ink/latest")
    storage.delete("ink/latest")
    with pytest.raises(StorageMissingError, match="ink/latest does not exist"):
        storage.read("ink/latest")


def test_a_large_file_goes_up_and_down_whole(storage: Storage, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(LARGE)
    storage.create("ink/1/adapter.safetensors", source)
    storage.download("ink/1/adapter.safetensors", target)
    assert target.read_bytes() == LARGE
    with pytest.raises(StorageConflictError):
        storage.create("ink/1/adapter.safetensors", source)
    with pytest.raises(StorageMissingError):
        storage.download("ink/2/adapter.safetensors", tmp_path / "other")


def test_a_taken_key_and_a_changed_key_are_conflicts(storage: Storage) -> None:
    etag = storage.create("latest", b"1")
    with pytest.raises(StorageConflictError):
        storage.create("latest", b"2")
    storage.replace("latest", b"2", etag=etag)
    with pytest.raises(StorageConflictError):
        storage.replace("latest", b"3", etag=etag)
    assert storage.read("latest").content == b"2"


def test_of_many_writers_one_wins(opener: Callable[[], Storage]) -> None:
    def attempt(action: Callable[[], object]) -> bool:
        try:
            action()
        except StorageConflictError:
            return False
        return True

    storages = [opener() for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        created = list(pool.map(lambda s: attempt(lambda: s.create("a/latest", b"0")), storages))
        assert sum(created) == 1
        etag = storages[0].read("a/latest").etag
        replaced = list(pool.map(lambda s: attempt(lambda: s.replace("a/latest", b"1", etag=etag)), storages))
        assert sum(replaced) == 1


def test_a_reader_sees_the_old_content_or_the_new_never_a_part(opener: Callable[[], Storage]) -> None:
    writer, reader = opener(), opener()
    contents = [bytes([i]) * 100_000 for i in range(20)]
    etag = writer.create("latest", contents[0])
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(lambda: [reader.read("latest").content for _ in range(100)])
        for content in contents[1:]:
            etag = writer.replace("latest", content, etag=etag)
        assert set(reading.result()) <= set(contents)


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path / "root")
    with pytest.raises(StorageMissingError):
        storage.create("ink/1/adapter.safetensors", tmp_path / "not there")
    assert [*(tmp_path / "root").rglob("*")] == []


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../up", "a/../b", "a//b", ".hidden", "a b", "a/", "a\n", "a/b\n"])
def test_keys_that_could_leave_the_root_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(StorageError, match="use letters, digits"):
        FileStorage(tmp_path).create(key, b"")


def test_errors_of_s3_have_a_remedy(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        StorageError, match=r"bucket of .* does not exist: S3 answered NoSuchBucket: .*; create it first"
    ):
        list(open_storage("s3://nowhere/a", endpoint_url=s3_endpoint).list())
    with pytest.raises(StorageError, match="cannot be reached"):
        open_storage(f"s3://{BUCKET}/a", endpoint_url=f"http://127.0.0.1:{free_port()}").read("key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StorageError, match="check the credentials"):
        open_storage(f"s3://{BUCKET}/a", endpoint_url=s3_endpoint).read("key")


def test_find_lists_what_matches_and_nothing_deeper(storage: Storage) -> None:
    for key in (
        "ink/latest",
        "ink/1/manifest.json",
        "ink/1/validation/1.png",
        "oil/2/manifest.json",
        "deep/1/x/latest",
    ):
        storage.create(key, key.encode())
    found = {entry.key: entry for entry in storage.find("*/latest", "*/*/manifest.json")}
    assert found.keys() == {"ink/latest", "ink/1/manifest.json", "oil/2/manifest.json"}
    assert found["ink/latest"].etag == storage.read("ink/latest").etag
    assert [entry.key for entry in storage.find("oil/*/manifest.json")] == ["oil/2/manifest.json"]


def test_an_object_over_a_size_is_not_read(storage: Storage, tmp_path: Path) -> None:
    storage.create("ink/latest", b"12345")
    large = tmp_path / "source"
    large.write_bytes(LARGE)
    storage.create("ink/weights", large)
    assert storage.read("ink/latest", max_bytes=5).content == b"12345"
    for key, size in (("ink/latest", 4), ("ink/weights", len(LARGE) - 1)):
        with pytest.raises(StorageError, match=f"{key} has more than {size} bytes"):
            storage.read(key, max_bytes=size)
        with pytest.raises(StorageError, match=f"{key} has more than {size} bytes"):
            storage.download(key, tmp_path / f"{size}", max_bytes=size)
    storage.download("ink/weights", tmp_path / "target", max_bytes=len(LARGE))
    assert (tmp_path / "target").read_bytes() == LARGE


def test_a_directory_that_disappears_is_an_error_and_one_that_never_was_is_empty(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path / "root")
    assert list(storage.find("*/latest")) == []
    storage.create("ink/latest", b"1")
    assert len(list(storage.find("*/latest"))) == 1
    (tmp_path / "root").rename(tmp_path / "away")
    with pytest.raises(StorageError, match="was there and is missing"):
        list(storage.find("*/latest"))
    with pytest.raises(StorageError, match="was there and is missing"):
        storage.probe()
    (tmp_path / "away").rename(tmp_path / "root")
    assert len(list(storage.find("*/latest"))) == 1
