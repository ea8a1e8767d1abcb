"""The file of a process's metric values: readable as prometheus-client's, and harmless on a full disk."""

import importlib
import os
from pathlib import Path

import pytest
from prometheus_client import values
from prometheus_client.mmap_dict import MmapedDict

from service.observability.values_file import ValuesFile, fold
from tests.conftest import fill


def stored(path: Path) -> dict[str, float]:
    return {key: value for key, value, _, _ in MmapedDict.read_all_values_from_file(path)}


def test_the_installed_library_makes_its_files_with_this_class() -> None:
    importlib.import_module("service.observability.metrics")  # installs it

    assert vars(values)["MmapedDict"] is ValuesFile
    assert "MmapedDict(filename)" in Path(values.__file__).read_text(encoding="utf-8")


def test_it_is_read_as_the_librarys_own(tmp_path: Path) -> None:
    ours, theirs = ValuesFile(str(tmp_path / "counter_1.db")), MmapedDict(str(tmp_path / "counter_2.db"))
    for index in range(2000):  # several blocks
        key = f'["name", "name", {{"adapter": "{"墨" * (index % 9)}{index}"}}, "help"]'
        for file in (ours, theirs):
            file.read_value(key)
            file.write_value(key, index * 0.5, 0.0)
    assert (tmp_path / "counter_1.db").stat().st_size > 1 << 16
    assert stored(tmp_path / "counter_1.db") == stored(tmp_path / "counter_2.db")
    ours.close()
    theirs.close()
    again = ValuesFile(str(tmp_path / "counter_3.db"))
    assert again.read_value("new") == (0.0, 0.0)


def test_its_blocks_are_written_and_so_have_their_place_on_the_disk(tmp_path: Path) -> None:
    ValuesFile(str(tmp_path / "counter_1.db"))
    status = (tmp_path / "counter_1.db").stat()
    assert status.st_blocks * 512 >= status.st_size


def test_a_full_disk_delays_new_values_only(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.observability.values_file._RETRY_SECONDS", 0.0)
    early = ValuesFile(str(small_disk / "counter_1.db"))
    early.write_value("known", 1.0, 0.0)
    filler = fill(small_disk)
    with pytest.raises(OSError, match="No space"):
        (small_disk / "probe").write_bytes(b"x" * 4096)
    early.write_value("known", 2.0, 0.0)
    assert stored(small_disk / "counter_1.db") == {"known": 2.0}
    for index in range(2000):
        early.write_value(f"{'new' * 20}{index}", 1.0, 0.0)
    early.write_value("known", 3.0, 0.0)
    late = ValuesFile(str(small_disk / "counter_2.db"))
    late.write_value("late", 1.0, 0.0)
    assert stored(small_disk / "counter_1.db")["known"] == 3.0
    assert not list(small_disk.glob("counter_2*"))
    assert not list(small_disk.glob("*.partial"))
    filler.unlink()
    late.write_value("late", 2.0, 0.0)
    early.write_value("one more " * 20, 1.0, 0.0)
    assert stored(small_disk / "counter_2.db") == {"late": 2.0}
    assert len(stored(small_disk / "counter_1.db")) == 2002


def test_counts_of_ended_processes_are_added_up(tmp_path: Path) -> None:
    total = tmp_path / "counter_0.db"
    for pid in (11, 12, 13):
        file = ValuesFile(str(tmp_path / f"counter_{pid}.db"))
        file.write_value("each", 1.0, 0.0)
        file.write_value(f"of {pid}", pid, 0.0)
        file.close()
        fold(tmp_path / f"counter_{pid}.db", total)
    assert os.listdir(tmp_path) == ["counter_0.db"]
    assert stored(total) == {"each": 3.0, "of 11": 11.0, "of 12": 12.0, "of 13": 13.0}


def test_on_a_full_disk_nothing_is_folded_and_nothing_lost(small_disk: Path) -> None:
    file = ValuesFile(str(small_disk / "counter_11.db"))
    file.write_value("one", 1.0, 0.0)
    fill(small_disk)
    with pytest.raises(OSError, match="No space"):
        fold(small_disk / "counter_11.db", small_disk / "counter_0.db")
    assert stored(small_disk / "counter_11.db") == {"one": 1.0}
    assert not list(small_disk.glob("counter_0*"))


def test_a_process_that_outlives_the_directory_of_its_run_logs_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that lost the race for its port ended while its fork server was still importing: five lines followed."""
    file = ValuesFile(str(tmp_path / "gone" / "counter_1.db"))
    file.write_value("each", 1.0, 0.0)
    assert not caplog.records
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "counter_2.partial").mkdir()  # cannot be written
    ValuesFile(str(tmp_path / "gone" / "counter_2.db"))
    assert [getattr(record, "event", "") for record in caplog.records] == ["metrics_delayed"]
