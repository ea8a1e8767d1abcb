"""Reading a directory that contains more than regular files."""

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from longcat.errors import StorageError, StorageMissingError, StorageTimeoutError
from longcat.storage.deadlines import Deadlines
from longcat.storage.files import FileStorage

needs_permissions = pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")


def socket_at(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


OTHERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "fifo": (os.mkfifo, "is not a regular file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is not a regular file"),
    "terminal": (lambda path: path.symlink_to("/dev/tty"), "is not a regular file"),
    "directory": (Path.mkdir, "is not a regular file"),
    "socket": (socket_at, "is not a regular file"),
    "itself": (lambda path: path.symlink_to(path.name), "symbolic link"),
    "nowhere": (lambda path: path.symlink_to("/nowhere"), "does not exist"),
    "file of a kernel": (lambda path: path.symlink_to("/proc/kmsg"), ""),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_file_is_listed_and_never_hangs(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, reason = OTHERS[kind]
    (tmp_path / "ink").mkdir()
    monkeypatch.chdir(tmp_path / "ink")  # the path of a socket is short
    make(Path("latest"))
    storage = FileStorage(tmp_path)
    assert [entry.key for entry in storage.find("*/latest")] == ["ink/latest"]
    begin = time.monotonic()
    if reason:
        with pytest.raises(StorageError, match=reason):
            storage.read("ink/latest")
        with pytest.raises(StorageError, match=reason):
            storage.download("ink/latest", tmp_path / "target", max_bytes=10)
    else:
        with suppress(StorageError):
            storage.read("ink/latest")
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize("key", ["../secret", "ink/../../secret", "{secret}", "..", ""])
def test_no_key_leads_out_of_the_root(tmp_path: Path, key: str) -> None:
    (tmp_path / "root" / "ink").mkdir(parents=True)
    secret = tmp_path / "secret"
    secret.write_text("root-password")
    storage = FileStorage(tmp_path / "root")
    with pytest.raises(StorageError):
        storage.read(key.format(secret=secret))
    with pytest.raises(StorageError):
        storage.download(key.format(secret=secret), tmp_path / "target", max_bytes=100)


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    data = elsewhere / "..2026_11" / "1"
    data.mkdir(parents=True)
    (data / "manifest.json").write_bytes(b"{}")
    root.mkdir()
    (root / "ink").mkdir()
    (root / "ink" / "1").symlink_to(data)
    (root / "ink" / "self").symlink_to("../ink")
    (root / "live").symlink_to("ink")
    (root / "up").symlink_to("..")
    (root / "everything").symlink_to("/")
    (root / "loop").symlink_to("loop")
    storage = FileStorage(root)
    assert {entry.key for entry in storage.find("*/*/manifest.json")} == {
        "ink/1/manifest.json",
        "live/1/manifest.json",
    }
    assert storage.read("live/1/manifest.json").content == b"{}"
    assert [entry.key for entry in storage.find("*/latest")] == ["loop/latest"]
    with pytest.raises(StorageError, match="symbolic link"):
        storage.read("loop/latest")


def test_a_file_where_a_directory_should_be_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "ink").write_text("notes")
    storage = FileStorage(tmp_path)
    assert list(storage.find("*/latest", "*/*/manifest.json")) == []
    with pytest.raises(StorageMissingError):
        storage.read("ink/latest")


@needs_permissions
def test_what_may_not_be_read_hides_nothing_else(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path)
    for name in ("closed", "ink", "secret"):
        storage.create(f"{name}/latest", b"1")
    (tmp_path / "closed").chmod(0)
    (tmp_path / "secret" / "latest").chmod(0)
    try:
        assert {entry.key for entry in storage.find("*/latest")} == {"closed/latest", "ink/latest", "secret/latest"}
        for name in ("closed", "secret"):
            with pytest.raises(StorageError, match="Permission denied"):
                storage.read(f"{name}/latest")
    finally:
        (tmp_path / "closed").chmod(0o755)


def test_a_call_is_abandoned_at_its_deadline_and_not_repeated_before_it_ends() -> None:
    deadlines, ends, calls = Deadlines(), threading.Event(), []

    def hang() -> str:
        calls.append(1)
        ends.wait(30)
        return "late"

    with pytest.raises(StorageTimeoutError, match="a has not been read within 0 s"):
        deadlines.run("a", 0.1, hang)
    with pytest.raises(StorageTimeoutError):
        deadlines.run("a", 30, hang)
    assert len(calls) == 1
    assert deadlines.run("b", 30, lambda: "at once") == "at once"
    ends.set()
    while True:
        try:
            assert deadlines.run("a", 30, hang) == "late"
            break
        except StorageTimeoutError:
            time.sleep(0.01)
    with pytest.raises(TimeoutError, match="its own"):
        deadlines.run("a", 30, _fail)


def _fail() -> None:
    raise TimeoutError("its own")


def test_nothing_is_removed_through_a_link(tmp_path: Path) -> None:
    storage = FileStorage(tmp_path)
    storage.create("blue/1/manifest.json", b"{}")
    (tmp_path / "live").symlink_to("blue")
    with pytest.raises(
        StorageError, match=r"live/1/manifest.json is reached by the symbolic link .*/live; remove the link"
    ):
        storage.delete("live/1/manifest.json")
    assert storage.read("blue/1/manifest.json").content == b"{}"
    (tmp_path / "blue" / "latest").symlink_to("1/manifest.json")
    storage.delete("blue/latest")
    assert storage.read("blue/1/manifest.json").content == b"{}"
