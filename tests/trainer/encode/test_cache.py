from pathlib import Path

import pytest
import torch

from longcat.errors import StorageError
from longcat.sampling.encoding.files import key_of
from trainer.encode.cache import Cache, fill

KEY = key_of("a")


def test_a_written_entry_is_read_by_another_cache(tmp_path: Path) -> None:
    rows = torch.randn(3, 4).bfloat16()
    Cache(tmp_path).write(KEY, rows)
    assert torch.equal(Cache(tmp_path).read(KEY), rows)
    assert Cache(tmp_path).read(key_of("b")) is None


@pytest.mark.parametrize("damage", [b"", b"nonsense"])
def test_a_damaged_entry_is_none(tmp_path: Path, damage: bytes) -> None:
    Cache(tmp_path).write(KEY, torch.ones(2))
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(damage)
    assert Cache(tmp_path).read(KEY) is None


def test_an_entry_with_one_changed_bit_is_none(tmp_path: Path) -> None:
    Cache(tmp_path).write(KEY, torch.ones(2))
    (path,) = tmp_path.rglob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    assert Cache(tmp_path).read(KEY) is None


def test_memory_stays_within_its_limit(tmp_path: Path) -> None:
    cache = Cache(tmp_path, memory_bytes=1000)
    keys = [key_of(i) for i in range(10)]
    for key in keys:
        cache.write(key, torch.zeros(100))
        assert cache.read(key) is not None
    assert sum(tensor.nbytes for tensor in cache._held.values()) <= 1000
    assert all(cache.read(key) is not None for key in keys)


def test_a_batch_is_computed_whole_or_not_at_all(tmp_path: Path) -> None:
    cache, calls = Cache(tmp_path), []
    keys = (key_of(0), key_of(1))

    def compute() -> list[torch.Tensor]:
        calls.append(1)
        return [torch.zeros(1), torch.ones(1)]

    calls_of_on_done: list[tuple[int, int, int]] = []
    assert fill(cache, [(keys, compute)], lambda *counts: calls_of_on_done.append(counts)) == 2
    assert fill(cache, [(keys, compute)], lambda *counts: calls_of_on_done.append(counts)) == 0
    (tmp_path / keys[1][:2] / f"{keys[1]}.safetensors").unlink()
    assert fill(Cache(tmp_path), [(keys, compute)], lambda *counts: calls_of_on_done.append(counts)) == 2
    assert len(calls) == 2
    assert calls_of_on_done == [(2, 2, 0), (2, 2, 2), (2, 2, 0)]


def test_only_entries_unused_for_a_month_are_removed(tmp_path: Path) -> None:
    import os
    import time

    cache = Cache(tmp_path)
    for name in ("old", "used", "new"):
        cache.write(key_of(name), torch.zeros(1))
    month = time.time() - 40 * 86400
    for name in ("old", "used"):
        path = tmp_path / key_of(name)[:2] / f"{key_of(name)}.safetensors"
        os.utime(path, (month, month))
    cache.touch([key_of("used")])
    assert cache.prune() == 1
    assert [name for name in ("old", "used", "new") if Cache(tmp_path).read(key_of(name)) is not None] == [
        "used",
        "new",
    ]


def test_a_directory_that_cannot_be_written_is_an_error_of_cache_dir(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError) as caught:
        Cache(tmp_path / "file").write(KEY, torch.zeros(1))
    assert [(p.code, p.field) for p in caught.value.problems] == [("cache_not_written", "cache_dir")]
