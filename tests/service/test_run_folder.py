"""The directories of a run: locked while it lives, removed after it, even after kill -9."""

import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.util import get_temp_dir
from pathlib import Path

import pytest

from longcat.errors import ConfigError, StorageError
from service.run_folder import run_folder
from tests.conftest import fill


@pytest.fixture(autouse=True)
def own_temporary_folder(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    tmp_path_factory.getbasetemp()  # not in the directory that this test removes
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # tmp_path is too long for the sockets of a server
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def leave_behind(parent: Path, name: str) -> Path:
    """Create a directory like that of a run that was killed a minute ago."""
    folder = parent / name
    (folder / "adapters").mkdir(parents=True)
    (folder / "adapters" / "0.safetensors").write_bytes(b"x")
    os.utime(folder, (time.time() - 60,) * 2)
    return folder


def test_it_is_removed_in_the_end(own_temporary_folder: Path) -> None:
    with run_folder(None) as (folder, metrics):
        assert folder.parent == own_temporary_folder
        assert metrics.parent == folder
        assert metrics.is_dir()
    assert not list(own_temporary_folder.iterdir())


def test_what_killed_runs_left_is_removed_and_what_others_use_is_not(own_temporary_folder: Path) -> None:
    abandoned = leave_behind(own_temporary_folder, "lithograph-run-abandoned")
    elsewhere = leave_behind(own_temporary_folder, "else")
    (own_temporary_folder / "lithograph-run-link").symlink_to(elsewhere)
    with run_folder(None) as (first, _):
        assert not abandoned.exists()
        os.utime(first, (time.time() - 60,) * 2)
        with run_folder(None) as (second, _):
            assert first.is_dir()
            assert second.is_dir()
    assert (elsewhere / "adapters" / "0.safetensors").exists()


def test_the_sockets_of_all_its_processes_are_in_it(own_temporary_folder: Path) -> None:
    with run_folder(None) as (folder, _), multiprocessing.get_context("fork").Pool(1) as pool:
        assert get_temp_dir() == pool.apply(get_temp_dir) == str(folder)
    assert not list(own_temporary_folder.iterdir())


def test_a_given_temporary_directory_is_used_or_named(own_temporary_folder: Path, small_disk: Path) -> None:
    fill(small_disk)
    with run_folder(None, temporary=str(small_disk)) as (folder, _):
        assert folder.parent == small_disk
    missing = str(own_temporary_folder / "missing")
    with pytest.raises(StorageError, match=f"TMPDIR = {missing}: cannot be written: No such file"):
        run_folder(None, temporary=missing).__enter__()
    assert not list(own_temporary_folder.glob("lithograph-run-*"))


def test_a_temporary_directory_too_deep_for_sockets_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("d" * 60)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with pytest.raises(ConfigError) as caught, run_folder(None):
        pass
    assert (caught.value.problems[0].field, caught.value.problems[0].value) == ("TMPDIR", str(deep))
    assert not list(deep.iterdir())


def test_a_missing_temporary_directory_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nowhere", "/proc"])
    with (
        pytest.raises(ConfigError, match=r"can be written: .*/nowhere.*; .* set TMPDIR"),
        run_folder(None),
    ):
        pass


def test_an_operators_metrics_directory_is_used_and_cleared_of_earlier_runs(tmp_path: Path) -> None:
    given = tmp_path / "deep" / "metrics"
    given.mkdir(parents=True)
    for name in ("counter_1.db", "gauge_livesum_7.db", "histogram_23.partial"):
        (given / name).write_bytes(b"stale")
    (given / "notes.txt").write_text("mine")
    with run_folder(str(given)) as (folder, metrics):
        assert metrics == given
        assert sorted(path.name for path in given.iterdir()) == ["counts.lock", "notes.txt"]
        with (
            pytest.raises(ConfigError, match=r"PROMETHEUS_MULTIPROC_DIR = .*: another server keeps its metrics there"),
            run_folder(str(given)),
        ):
            pass
        assert folder.is_dir()
    with run_folder(str(given)):
        pass


def test_a_full_disk_is_named(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    given = small_disk / "metrics"
    given.write_text("no directory")
    with (
        pytest.raises(StorageError, match=r"PROMETHEUS_MULTIPROC_DIR = .*metrics: cannot be written"),
        run_folder(str(given)),
    ):
        pass
    fill(small_disk)
    with run_folder(None) as (folder, _):  # a directory needs no block of a tmpfs
        assert folder.is_dir()
