"""Embeddings of prompts on disk: the same pictures, shared between servers, and never a damaged one."""

import logging
import os
import subprocess
import threading
from pathlib import Path

import pytest
import torch

from longcat.model.loading import Components
from longcat.sampling.encoding.files import TensorFiles
from service.engine.encoding.prompt_encoder import CacheCounts, PromptEncoder
from service.engine.encoding.prompt_files import PromptFiles
from tests.conftest import fill
from tests.service.engine.harness import EngineHarness

MIB = 2**20
PROMPTS = ("", "一只猫", "a cat in the rain", " ".join(["cat"] * 32))
"""With 31 pad rows, with some, and without any."""


def encoder(model: Components, folder: Path, *, most_bytes: int = 64 * MIB) -> PromptEncoder:
    """Return the encoder of a server that has just started."""
    return PromptEncoder(model, PromptFiles(model, folder, most_bytes=most_bytes))


def entries(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def test_another_server_reads_the_same_bits(model: Components, tmp_path: Path) -> None:
    expected = [PromptEncoder(model, None).encode(prompt) for prompt in PROMPTS]
    first, second = encoder(model, tmp_path), encoder(model, tmp_path)
    for each in (first, second, second):
        assert all(torch.equal(each.encode(prompt), embeds) for prompt, embeds in zip(PROMPTS, expected, strict=True))
    assert first.cache_counts == CacheCounts(memory=0, disk=0, misses=4)
    assert second.cache_counts == CacheCounts(memory=4, disk=4, misses=0)
    assert len(entries(tmp_path)) == 4


def test_pictures_are_equal_to_the_byte(model: Components, tmp_path: Path) -> None:
    pictures = []
    for folder in (None, tmp_path, tmp_path):
        files = None if folder is None else PromptFiles(model, folder, most_bytes=64 * MIB)
        harness = EngineHarness(model, prompt_files=files)
        harness.submit("a", prompt="一只猫", negative_prompt="blurry")
        harness.run(1)
        pictures.append(harness.pictures("a"))
    assert harness.engine.workers.prompts.cache_counts == CacheCounts(memory=0, disk=2, misses=0)
    assert pictures[0] == pictures[1] == pictures[2]


@pytest.mark.parametrize("damage", ["cut", "changed", "of another prompt", "of another type", "a directory"])
def test_a_damaged_entry_is_made_again(model: Components, tmp_path: Path, damage: str) -> None:
    expected = encoder(model, tmp_path).encode("一只猫")
    (path,) = entries(tmp_path)
    content = path.read_bytes()
    match damage:
        case "cut":
            path.write_bytes(content[:-1])
        case "changed":
            path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        case "of another prompt":
            encoder(model, tmp_path / "other").encode("a dog")
            path.write_bytes(entries(tmp_path / "other")[0].read_bytes())
        case "of another type":
            path.write_bytes(content.replace(b'"F32"', b'"I32"'))
        case "a directory":
            path.unlink()
            path.mkdir()
    damaged = encoder(model, tmp_path)
    assert torch.equal(damaged.encode("一只猫"), expected)
    assert damaged.cache_counts.misses == 1
    if damage != "a directory":
        assert path.read_bytes() == content


def test_an_entry_of_a_wrong_shape_is_no_hit(model: Components, tmp_path: Path) -> None:
    encoder(model, tmp_path).encode("一只猫")
    (path,) = entries(tmp_path)
    TensorFiles(tmp_path).write(path.stem, torch.zeros(3, 5))
    again = encoder(model, tmp_path)
    again.encode("一只猫")
    assert again.cache_counts.misses == 1


def test_the_least_recently_used_are_removed(model: Components, tmp_path: Path) -> None:
    prompts = [f"cat {i}" for i in range(24)]
    writing = encoder(model, tmp_path)
    writing.encode(prompts[0])
    (first,) = entries(tmp_path)
    limit = 10 * first.stat().st_size + 10 * 256
    os.utime(first, (1, 1))
    writing = encoder(model, tmp_path, most_bytes=limit)
    for i, prompt in enumerate(prompts[1:], 1):
        before = set(entries(tmp_path))
        writing.encode(prompt)
        for path in set(entries(tmp_path)) - before:
            os.utime(path, (i + 1, i + 1))  # a clock that is coarser than writing is fast
        assert sum(path.stat().st_size for path in entries(tmp_path)) <= limit
        encoder(model, tmp_path).encode(prompts[1])  # which is used all the time, and so stays
    assert not first.exists()
    reading = encoder(model, tmp_path)
    for prompt in (prompts[1], *prompts[-5:]):
        reading.encode(prompt)
    assert reading.cache_counts.disk == 6


def test_servers_share_a_folder_at_the_same_time(model: Components, tmp_path: Path) -> None:
    expected = {prompt: PromptEncoder(model, None).encode(prompt) for prompt in PROMPTS}
    wrong: list[str] = []

    def run() -> None:
        for _ in range(3):
            one = encoder(model, tmp_path, most_bytes=64 * 1024)
            wrong.extend(prompt for prompt in PROMPTS if not torch.equal(one.encode(prompt), expected[prompt]))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_full_disk_is_logged_once(model: Components, small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(small_disk)
    assert_works_without(model, small_disk / "prompts", caplog)


def test_a_read_only_folder_is_read_and_logged_once(
    model: Components, small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    known, *others = PROMPTS
    folder = small_disk / "prompts"
    encoder(model, folder).encode(known)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    one = encoder(model, folder, most_bytes=1)  # too small: an eviction is due at each write
    caplog.set_level(logging.WARNING, "lithograph")
    for prompt in PROMPTS:
        assert torch.equal(one.encode(prompt), PromptEncoder(model, None).encode(prompt))
    assert one.cache_counts == CacheCounts(memory=0, disk=1, misses=len(others))
    assert [vars(record)["event"] for record in caplog.records] == ["prompt_cache_not_written"]
    assert "Read-only file system" in caplog.text


def test_a_folder_that_cannot_be_made_is_logged_once(
    model: Components, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    assert_works_without(model, tmp_path / "file", caplog)


def assert_works_without(model: Components, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "lithograph")
    one = encoder(model, folder)
    for prompt in PROMPTS:
        assert torch.equal(one.encode(prompt), PromptEncoder(model, None).encode(prompt))
    assert [vars(record)["event"] for record in caplog.records] == ["prompt_cache_not_written"]
    assert str(folder) in caplog.text
