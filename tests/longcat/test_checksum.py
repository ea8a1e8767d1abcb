import json
import os
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from longcat import checksum
from longcat.checksum import checksums, remember_checksums


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    remember_checksums(tmp_path / "cache")
    yield tmp_path / "cache" / "checksums.json"
    checksum._remembered.clear()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return the files that are read, in order."""
    read: list[Path] = []
    original = checksum.file_sha256
    monkeypatch.setattr(checksum, "file_sha256", lambda path: (read.append(path), original(path))[1])
    return read


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[Path, str]:
    """Return the checksums of three files that were written long ago."""
    contents = {tmp_path / name: name.encode() * 1000 for name in ("a", "b", "c")}
    for path, content in contents.items():
        path.write_bytes(content)
    later = time.time_ns() + 10**11
    monkeypatch.setattr(time, "time_ns", lambda: later)
    return {path: sha256(content).hexdigest() for path, content in contents.items()}


def test_files_are_read_once(cache: Path, files: dict[Path, str], reads: list[Path]) -> None:
    assert checksums(files) == files
    assert sorted(reads) == sorted(files)
    reads.clear()
    assert checksums(files) == files
    assert reads == []
    assert len(json.loads(cache.read_bytes())) == len(files)


@pytest.mark.parametrize("keeps_times", [False, True])
def test_a_changed_file_is_read_again(
    cache: Path, files: dict[Path, str], reads: list[Path], *, keeps_times: bool
) -> None:
    checksums(files)
    reads.clear()
    changed = next(iter(files))
    status = changed.stat()
    time.sleep(0.02)  # more than the tick of a file system's clock
    changed.write_bytes(b"x" * status.st_size)
    if keeps_times:
        os.utime(changed, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert checksums(files)[changed] == sha256(b"x" * status.st_size).hexdigest()
    assert reads == [changed]


def test_a_file_that_has_just_been_written_is_not_remembered(cache: Path, tmp_path: Path, reads: list[Path]) -> None:
    path = tmp_path / "new"
    path.write_bytes(b"1")
    for _ in range(2):
        checksums([path])
    assert reads == [path, path]
    assert not cache.exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"1 2 3 4 5": 7}', b"\xff\xfe"])
def test_a_damaged_cache_is_made_again(cache: Path, files: dict[Path, str], reads: list[Path], content: bytes) -> None:
    cache.parent.mkdir()
    cache.write_bytes(content)
    assert checksums(files) == files
    reads.clear()
    assert checksums(files) == files
    assert reads == []


def test_without_a_writable_cache_files_are_hashed_each_time(
    tmp_path: Path, files: dict[Path, str], reads: list[Path], cache: Path
) -> None:
    cache.parent.write_bytes(b"a file where the folder should be")
    for _ in range(2):
        assert checksums(files) == files
    assert len(reads) == 2 * len(files)
