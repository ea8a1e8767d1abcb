"""One broken adapter in storage: it is rejected with its reason, and others are unaffected."""

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from longcat.adapter.weights.lora import LoraWeights
from longcat.errors import AdapterError, StorageError, UnknownAdapterError
from longcat.model.loading import Components
from longcat.storage.files import FileStorage
from service.wire.messages import AdapterState
from tests.service.adapters.conftest import Service, put

Break = Callable[[Path], object]
"""Damages the directory of one adapter."""


def replaced(file: str, make: Callable[[Path], object]) -> Break:
    def break_(ink: Path) -> None:
        path = ink / file
        path.unlink()
        make(path)

    return break_


def edited(**fields: object) -> Break:
    def break_(ink: Path) -> None:
        path = ink / "1" / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return break_


def sparse(path: Path) -> None:
    with path.open("wb") as stream:
        stream.truncate(2**30)


MANIFEST, WEIGHTS = "1/manifest.json", "1/adapter.safetensors"
BROKEN: dict[str, tuple[Break, str]] = {
    "latest is a link to itself": (replaced("latest", lambda p: p.symlink_to("latest")), "symbolic link"),
    "latest is a link to nowhere": (replaced("latest", lambda p: p.symlink_to("/nowhere")), "does not exist"),
    "latest is a FIFO": (replaced("latest", os.mkfifo), "not a regular file"),
    "latest is a directory": (replaced("latest", Path.mkdir), "not a regular file"),
    "latest is a device": (replaced("latest", lambda p: p.symlink_to("/dev/zero")), "not a regular file"),
    "latest has 300 digits": (replaced("latest", lambda p: p.write_text("9" * 300)), "its latest file is"),
    "latest has 5000 digits": (replaced("latest", lambda p: p.write_text("9" * 5000)), "its latest file is"),
    "latest has 1 GiB": (replaced("latest", sparse), "has more than"),
    "latest is empty": (replaced("latest", Path.touch), "its latest file is"),
    "latest is negative": (replaced("latest", lambda p: p.write_text("-1")), "its latest file is"),
    "latest has an underscore": (replaced("latest", lambda p: p.write_text("0_1")), "its latest file is"),
    "latest is not UTF-8": (replaced("latest", lambda p: p.write_bytes(b"\xff\xfe1")), "its latest file is"),
    "latest has no version": (replaced("latest", lambda p: p.write_text("7")), "version 7 is incomplete"),
    "manifest is a directory": (replaced(MANIFEST, Path.mkdir), "not a regular file"),
    "manifest is a FIFO": (replaced(MANIFEST, os.mkfifo), "not a regular file"),
    "manifest has 1 GiB": (replaced(MANIFEST, sparse), "has more than"),
    "manifest is missing": (lambda ink: (ink / MANIFEST).unlink(), "is incomplete"),
    "manifest is deep": (replaced(MANIFEST, lambda p: p.write_text("[" * 200_000)), "manifest is invalid"),
    "manifest is not UTF-8": (replaced(MANIFEST, lambda p: p.write_bytes(b'{"name": "\xff"}')), "manifest is invalid"),
    "manifest is empty": (replaced(MANIFEST, Path.touch), "manifest is invalid: not JSON: EOF"),
    "manifest is of another": (edited(name="oil"), "its manifest is that of oil@1"),
    "manifest has a version of 400 digits": (edited(version=10**400), "its manifest is that of"),
    "manifest has a key of 500 KB": (edited(**{"x" * 500_000: 1}), "manifest is invalid"),
    "rank is too high": (edited(rank=17), "rank 17 exceeds the limit"),
    "weights are said to have 1 TiB": (edited(weights={"sha256": "0" * 64, "size_bytes": 2**40}), "its file has"),
}
LATE: dict[str, tuple[Break, str]] = {
    "weights are a FIFO": (replaced(WEIGHTS, os.mkfifo), "not a regular file"),
    "weights are a directory": (replaced(WEIGHTS, Path.mkdir), "not a regular file"),
    "weights are a device": (replaced(WEIGHTS, lambda p: p.symlink_to("/dev/zero")), "not a regular file"),
    "weights are missing": (lambda ink: (ink / WEIGHTS).unlink(), "is incomplete"),
    "weights have 1 GiB": (replaced(WEIGHTS, sparse), "has more than"),
    "weights are others": (replaced(WEIGHTS, lambda p: p.write_bytes(b"others")), "weights are damaged"),
}
"""Defects that show only when the weights are needed."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def broken_service(model: Components, tmp_path: Path, root: Path, some_lora: Callable[..., LoraWeights]) -> Service:
    """Return a service with two adapters in storage that it has not polled yet."""
    storage = FileStorage(root)
    for seed, name in enumerate(("ink", "oil"), 1):
        put(storage, model, tmp_path / "new", name, some_lora(seed))
    return Service(storage, model, tmp_path / "downloads")


@pytest.mark.parametrize("kind", BROKEN | LATE)
def test_a_broken_adapter_has_its_reason_and_hides_no_other(
    broken_service: Service,
    model: Components,
    tmp_path: Path,
    root: Path,
    some_lora: Callable[..., LoraWeights],
    kind: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "lithograph")
    registry = broken_service.registry
    break_, reason = (BROKEN | LATE)[kind]
    break_(root / "ink")
    begin = time.monotonic()
    registry.poll()
    if kind in LATE:
        assert broken_service.state("ink") == (AdapterState.READY, 1, 1)
        assert not broken_service.status("ink").verified
    with pytest.raises(AdapterError, match=reason) as caught:
        registry.resolve("ink")
    assert not isinstance(caught.value, UnknownAdapterError)
    assert caught.value.code == "invalid_adapter"
    new = put(FileStorage(root), model, tmp_path / "new", "oil", some_lora(3))
    for _ in range(3):
        registry.poll()
    assert time.monotonic() - begin < 8
    assert registry.reachable
    assert registry.resolve("oil").manifest == new
    state, _, version = broken_service.state("ink")
    assert (state, version) == (AdapterState.REFUSED, None)
    assert reason in str(broken_service.status("ink").reason)
    assert len(str(broken_service.status("ink").reason)) < 2000
    assert [getattr(record, "event", "") for record in caplog.records].count("adapter_refused") == 1
    fixed = put(FileStorage(root), model, tmp_path / "new", "wax", some_lora(4))
    registry.poll()
    assert broken_service.state("wax") == (AdapterState.READY, 1, 1)
    assert registry.resolve("wax").manifest == fixed


@pytest.mark.parametrize(
    "kind", ["latest is a FIFO", "latest has 300 digits", "manifest is a FIFO", "manifest is deep"]
)
def test_an_adapter_that_breaks_keeps_its_version_and_one_that_is_mended_is_served(
    broken_service: Service, root: Path, kind: str
) -> None:
    registry = broken_service.registry
    before = {file: (root / "ink" / file).read_bytes() for file in ("latest", MANIFEST)}
    registry.poll()
    served = registry.resolve("ink")
    BROKEN[kind][0](root / "ink")
    registry.poll()
    assert broken_service.state("ink")[0] is AdapterState.OUTDATED
    assert registry.resolve("ink").manifest == served.manifest
    for file, content in before.items():
        (root / "ink" / file).unlink()
        (root / "ink" / file).write_bytes(content)
    registry.poll()
    assert broken_service.state("ink") == (AdapterState.READY, 1, 1)


def test_a_broken_latest_leaves_the_versions_that_can_be_named(broken_service: Service, root: Path) -> None:
    (root / "ink" / "latest").write_bytes(b"none")
    assert broken_service.registry.resolve("ink@1").manifest.reference == "ink@1"
    broken_service.registry.poll()
    assert broken_service.registry.resolve("ink@1").manifest.reference == "ink@1"
    with pytest.raises(UnknownAdapterError, match="no version 2"):
        broken_service.registry.resolve("ink@2")


def test_names_that_no_adapter_can_have_are_skipped(broken_service: Service, root: Path) -> None:
    for name in ("ink copy", "备份", "Ink", "-x", "x" * 64, os.fsdecode(b"\xff\xfe")):
        (root / name / "1").mkdir(parents=True)
        (root / name / "latest").write_text("1")
    (root / "notes.txt").write_text("notes")
    (root / "empty").mkdir()
    (root / "dangling").symlink_to("/nowhere")
    broken_service.registry.poll()
    assert broken_service.registry.reachable
    assert [status.name for status in broken_service.registry.status()] == ["ink", "oil"]
    assert broken_service.registry.resolve("ink").manifest.reference == "ink@1"


READER = """
import os, sys
from pathlib import Path
from longcat.errors import StorageError
from longcat.storage.files import FileStorage
storage = FileStorage(Path(sys.argv[1]))
storage.find("*/latest")
try:
    storage.read("none/latest")  # imports whatever errors need: the other user may not be allowed to read this checkout
except StorageError:
    os.setgid(65534)
    os.setuid(65534)
print(sorted(entry.key for entry in storage.find("*/latest")))
for name in ("closed", "ink", "secret"):
    try:
        print(storage.read(f"{name}/latest").content)
    except StorageError as error:
        print(error.problems[0].details["reason"])
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_what_may_not_be_read_hides_nothing_else(small_disk: Path) -> None:
    root = small_disk  # pytest's directories are inaccessible to other users
    root.chmod(0o755)
    storage = FileStorage(root)
    for name in ("closed", "ink", "secret"):
        storage.create(f"{name}/latest", b"1")
    (root / "closed").chmod(0)
    (root / "secret" / "latest").chmod(0)
    done = subprocess.run(
        [sys.executable, "-c", READER, str(root)], capture_output=True, text=True, check=True, timeout=60
    )
    denied = "Permission denied"
    assert done.stdout.split("\n")[:4] == [
        "['closed/latest', 'ink/latest', 'secret/latest']", denied, "b'1'", denied,
    ]  # fmt: skip


def test_storage_that_is_gone_is_no_problem_of_an_adapter(broken_service: Service, root: Path) -> None:
    registry = broken_service.registry
    registry.poll()
    root.rename(root.with_name("away"))
    with pytest.raises(StorageError):
        registry.resolve("ink")
    with pytest.raises(StorageError):
        registry.resolve("unknown")
    with pytest.raises(StorageError):
        registry.resolve("ink@1")
    registry.poll()
    assert not registry.reachable
    assert broken_service.state("ink") == (AdapterState.READY, 1, 1)
    root.with_name("away").rename(root)
    registry.poll()
    assert registry.reachable
    assert registry.resolve("ink").manifest.reference == "ink@1"
