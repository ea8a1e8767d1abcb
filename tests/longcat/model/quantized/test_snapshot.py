import errno
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from longcat.checksum import file_sha256
from longcat.model.flavour import EMBEDDED_FOLDER, Flavour, resolve
from longcat.model.loading import Components, load
from longcat.model.precision import Precision
from longcat.model.quantized import snapshot
from longcat.model.quantized.quantize import quantize_base
from longcat.model.quantized.snapshot import snapshots_of

QUANTIZED = [precision for precision in Precision if precision is not Precision.NO_CHANGE]
COMPONENTS = ("transformer", "text_encoder")

Start = Callable[..., Components]


@pytest.fixture
def quantized(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the components that were quantized rather than read, in order."""
    made: list[str] = []

    def quantize(model: nn.Module, precision: Precision, **options: Any) -> int:
        if precision is not Precision.NO_CHANGE:
            made.append("transformer" if hasattr(model, "transformer_blocks") else "text_encoder")
        return quantize_base(model, precision, **options)

    monkeypatch.setattr("longcat.model.loading.quantize_base", quantize)
    return made


@pytest.fixture
def start(flavour: Flavour, tmp_path: Path, quantized: list[str]) -> Start:
    def started(precision: Precision = Precision.INT8_TORCHAO, **options: object) -> Components:
        quantized.clear()
        settings: dict[str, Any] = {
            "precision": precision,
            "text_encoder_precision": precision,
            "quantized_folder": tmp_path,
        } | options
        return load(flavour, device="cpu", dtype="bfloat16", **settings)

    return started


def numbers(model: nn.Module) -> dict[str, Tensor]:
    return {leaf: plain for name, tensor in snapshot._tensors(model) for leaf, plain in snapshot._leaves(name, tensor)}


def assert_equal(one: Components, other: Components) -> None:
    for component in COMPONENTS:
        a, b = numbers(getattr(one, component)), numbers(getattr(other, component))
        assert a.keys() == b.keys()
        for name in a:
            assert (a[name].dtype, a[name].device) == (b[name].dtype, b[name].device), name
            assert torch.equal(a[name].reshape(-1).view(torch.uint8), b[name].reshape(-1).view(torch.uint8)), name


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("precision", QUANTIZED)
def test_layers_converted_one_by_one_equal_those_of_a_model_that_was_converted_whole(
    flavour: Flavour, precision: Precision, dtype: str
) -> None:
    one_by_one = load(flavour, device="cpu", dtype=dtype, precision=precision, text_encoder_precision=precision)
    whole = load(flavour, device="cpu", dtype=dtype)
    for component in COMPONENTS:
        quantize_base(getattr(whole, component), precision, device=whole.device, training=False)
    assert_equal(one_by_one, whole)


def snapshots(folder: Path, component: str = "") -> list[Path]:
    return sorted(folder.glob(f"{component}*-*"))


@pytest.mark.parametrize("precision", QUANTIZED)
def test_the_second_start_reads_the_same_weights(
    start: Start, quantized: list[str], tmp_path: Path, precision: Precision
) -> None:
    first = start(precision)
    assert quantized == list(COMPONENTS)
    assert len(snapshots(tmp_path)) == 2
    second = start(precision)
    assert quantized == []
    assert_equal(first, second)
    encoder = second.text_encoder
    assert encoder.lm_head.weight is encoder.get_input_embeddings().weight  # tied, as in the first
    assert encoder.generation_config == first.text_encoder.generation_config
    assert not any(part.training for part in (encoder, second.transformer))
    assert not any(parameter.requires_grad for parameter in second.transformer.parameters())


def test_a_snapshot_is_of_its_model_settings_and_versions(
    start: Start,
    quantized: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="lithograph")
    start()
    start(text_encoder_precision=Precision.INT8_QUANTO)
    assert quantized == ["text_encoder"]
    start(text_encoder_precision=Precision.NO_CHANGE)
    assert quantized == []
    assert len(snapshots(tmp_path)) == 3
    monkeypatch.setattr(snapshot, "version", lambda _: "99")
    start()
    assert quantized == list(COMPONENTS)
    assert caplog.text.count("of other versions") == 2
    assert len(snapshots(tmp_path)) == 3  # the earlier versions' are gone


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def rewrite_manifest(path: Path) -> None:
    """Make a file that lacks tensors match its checksum."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    tensors.pop(next(iter(tensors)))
    digest = file_sha256(path)
    save_file(tensors, path)
    manifest = path.parent / "snapshot.json"
    manifest.write_text(manifest.read_text().replace(digest, file_sha256(path)))


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        flip,
        Path.unlink,
        rewrite_manifest,
        lambda path: (path.parent / "snapshot.json").write_text("{"),
    ],
)
def test_a_damaged_snapshot_is_made_again(
    start: Start,
    quantized: list[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], object],
) -> None:
    first = start()
    (folder,) = snapshots(tmp_path, "transformer")
    damage(folder / "000.safetensors")
    caplog.clear()
    second = start()
    assert quantized == ["transformer"]
    assert [record.levelname for record in caplog.records if "damaged" in record.message] == ["WARNING"]
    assert_equal(first, second)
    start()
    assert quantized == []


def test_an_unfinished_snapshot_is_none(start: Start, quantized: list[str], tmp_path: Path) -> None:
    start()
    (folder,) = snapshots(tmp_path, "transformer")
    folder.rename(tmp_path / ".partial-1")
    start()
    assert quantized == ["transformer"]
    (tmp_path / ".partial-1").touch()
    (folder / "snapshot.json").unlink()
    start()
    assert quantized == ["transformer"]
    assert (tmp_path / ".partial-1").exists()  # of a process that may still write it
    start()
    assert quantized == []


def test_earlier_versions_stay_until_their_replacement_is_kept(
    start: Start, quantized: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, tensors: dict[str, Tensor]) -> str:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    start()
    kept = snapshots(tmp_path)
    with monkeypatch.context() as newer:
        newer.setattr(snapshot, "version", lambda _: "99")
        newer.setattr(snapshot, "_write_file", full)
        start()
        assert quantized == list(COMPONENTS)
    assert snapshots(tmp_path) == kept
    start()
    assert quantized == []


def test_of_two_processes_the_first_to_finish_wins(
    start: Start, quantized: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = snapshot._write_file
    other = tmp_path / "other"

    def overtaken(path: Path, tensors: dict[str, Tensor]) -> str:
        digest = original(path, tensors)
        if "transformer_blocks.0.attn.to_q.weight/qdata" in tensors:  # the other process finishes meanwhile
            (finished,) = snapshots(other, "transformer")
            shutil.copytree(finished, tmp_path / finished.name)
        return digest

    first = start(quantized_folder=other)
    monkeypatch.setattr(snapshot, "_write_file", overtaken)
    start()
    assert not list(tmp_path.glob(".partial-*"))
    second = start()
    assert quantized == []
    assert_equal(first, second)


def test_without_a_writable_folder_every_start_quantizes(
    start: Start, quantized: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    for _ in range(2):
        start(quantized_folder=blocked / "folder")
        assert quantized == list(COMPONENTS)
    assert "are not kept" in caplog.text


def test_snapshots_are_kept_beside_a_model_of_ones_own(flavour: Flavour, tmp_path: Path) -> None:
    assert snapshots_of(flavour, "auto") is None
    assert snapshots_of(flavour, str(tmp_path)) == tmp_path
    copy = tmp_path / "model"
    shutil.copytree(EMBEDDED_FOLDER, copy)
    own = resolve(str(copy))
    assert snapshots_of(own, "auto") == copy / "quantized"
    assert snapshots_of(own, "none") is None
    (copy / "quantized").mkdir()
    (copy / "quantized" / "000.safetensors").write_bytes(b"")
    assert resolve(str(copy)).hash == own.hash
