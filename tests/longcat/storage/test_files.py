"""Storage in a directory on file systems that lack something: hard links, locks, modes."""

import errno
import fcntl
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import pytest

from longcat.adapter import artifact
from longcat.adapter.manifest import BaseIdentity, Draft
from longcat.adapter.publishing import publish, set_latest
from longcat.errors import StorageConflictError, StorageError
from longcat.storage.files import FileStorage

DRAFT = Draft(
    base=BaseIdentity(flavour="embedded", revision=None, hash="0" * 64), rank=1, alpha=1, target_modules=("x",), tensors=2,
    origin="trained",
)  # fmt: skip


def failing(number: int) -> Callable[..., NoReturn]:
    """Return a system call that the file system does not support."""

    def call(*_: object, **__: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    return call


@pytest.fixture(params=[errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS], ids=errno.errorcode.get)
def without_links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return a directory on such a file system; exFAT returns EPERM."""
    monkeypatch.setattr(os, "link", failing(request.param))
    return tmp_path / "root"


def test_without_hard_links_a_key_is_created_once(without_links: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"weights")
    storage = FileStorage(without_links)
    storage.create("ink/1/adapter.safetensors", source)
    with pytest.raises(StorageConflictError):
        storage.create("ink/1/adapter.safetensors", b"others")
    assert storage.read("ink/1/adapter.safetensors").content == b"weights"
    assert (without_links / "ink/1/adapter.safetensors").stat().st_mode & 0o777 == 0o644
    assert [path.name for path in without_links.rglob("*") if path.is_file() and path.name != ".lock"] == [
        "adapter.safetensors"
    ]


def test_without_hard_links_of_many_writers_one_wins(without_links: Path) -> None:
    def attempt(number: int) -> bool:
        try:
            FileStorage(without_links).create("ink/latest", f"{number}\n".encode())
        except StorageConflictError:
            return False
        return True

    for _ in range(20):
        with ThreadPoolExecutor(8) as pool:
            created = list(pool.map(attempt, range(8)))
        assert sum(created) == 1
        assert FileStorage(without_links).read("ink/latest").content == f"{created.index(True)}\n".encode()
        FileStorage(without_links).delete("ink/latest")


def test_without_hard_links_publishers_at_once_get_a_version_each(without_links: Path, tmp_path: Path) -> None:
    file = tmp_path / "adapter.safetensors"
    file.write_bytes(b"weights")

    def publish_next(_: int) -> int:
        storage = FileStorage(without_links)
        version = publish(storage, "ink", DRAFT, file).version
        set_latest(storage, "ink", version, only_forward=True)
        return version

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(publish_next, range(8))) == [*range(1, 9)]
    assert artifact.latest_version(FileStorage(without_links), "ink") == 8


def test_without_links_and_locks_the_error_names_what_is_missing(
    without_links: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", failing(errno.ENOLCK))
    with pytest.raises(StorageError, match=r"file system without file locks.*; mount it with locks") as caught:
        FileStorage(without_links).create("ink/1/adapter.safetensors", b"weights")
    assert caught.value.problems[0].code == "storage_without_locks"
    assert [path.name for path in without_links.iterdir()] == [".lock"]


def test_without_modes_the_mount_decides_who_may_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "chmod", failing(errno.EPERM))
    storage = FileStorage(tmp_path)
    etag = storage.create("latest", b"1")
    storage.replace("latest", b"2", etag=etag)
    assert storage.read("latest").content == b"2"


def test_another_user_can_replace_a_key(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path)
    storage.replace("latest", b"2", etag=storage.create("latest", b"1"))
    assert (tmp_path / ".lock").stat().st_mode & 0o777 == 0o666


@pytest.mark.parametrize(
    ("number", "message"), [(errno.ENOSPC, "its disk is full"), (errno.EIO, os.strerror(errno.EIO))]
)
def test_other_errors_of_links_are_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    monkeypatch.setattr(os, "link", failing(number))
    with pytest.raises(StorageError, match=message):
        FileStorage(tmp_path / "root").create("ink/1/adapter.safetensors", b"weights")
    assert [*(tmp_path / "root").iterdir()] == []


def test_a_writer_whose_directory_another_one_removes_makes_it_again(tmp_path: Path) -> None:
    """Two writers of one key: the loser removes the directories that it finds empty."""

    def write_and_delete(number: int) -> None:
        storage = FileStorage(tmp_path)
        for _ in range(100):
            storage.create(f"ink/1/{number}", b"")
            storage.delete(f"ink/1/{number}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write_and_delete, range(4)))
    assert [*tmp_path.iterdir()] == []
