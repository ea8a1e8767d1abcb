"""Storage on a directory and on a real S3 server (SeaweedFS): the same promises on both."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from longcat.errors import StorageConflictError, StorageError, StorageMissingError
from longcat.file_storage import FileStorage
from longcat.storage import Storage, open_storage
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
    with pytest.raises(StorageMissingError, match="ink/latest is not there"):
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


def test_an_interrupted_write_leaves_nothing_to_be_seen(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path / "root")
    with pytest.raises(StorageMissingError):
        storage.create("ink/1/adapter.safetensors", tmp_path / "not there")
    assert list(storage.list()) == []
    assert [path for path in (tmp_path / "root").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../up", "a/../b", "a//b", ".hidden", "a b", "a/"])
def test_keys_that_could_leave_the_root_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(StorageError, match="use letters, digits"):
        FileStorage(tmp_path).create(key, b"")


@pytest.mark.parametrize("uri", ["", "adapters", "ftp://host/a", "s3://", "file://host/a"])
def test_other_uris_are_refused(uri: str) -> None:
    with pytest.raises(StorageError, match="neither file:///directory nor s3://bucket/prefix"):
        open_storage(uri)


def test_s3_refusals_say_what_to_do(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError, match="no such bucket; create it first"):
        list(open_storage("s3://nowhere/a", endpoint_url=s3_endpoint).list())
    with pytest.raises(StorageError, match="cannot be reached"):
        open_storage(f"s3://{BUCKET}/a", endpoint_url=f"http://127.0.0.1:{free_port()}").read("key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StorageError, match="check the credentials"):
        open_storage(f"s3://{BUCKET}/a", endpoint_url=s3_endpoint).read("key")
