"""Verification of a version's weights against its manifest, and of numbers beyond the dtype's range."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from longcat.adapter import artifact
from longcat.adapter.manifest import Draft, Manifest
from longcat.adapter.modules import lora_targets
from longcat.adapter.publishing import publish
from longcat.adapter.verification import check_lora, load_version
from longcat.adapter.weights.draft import draft_of
from longcat.adapter.weights.file import load_lora, save_lora
from longcat.adapter.weights.lora import LoraLayer, LoraWeights
from longcat.errors import AdapterError
from longcat.model.loading import Components
from longcat.storage.files import FileStorage
from tests.longcat.adapter.test_artifact import some_lora


@pytest.fixture
def version(model: Components, tmp_path: Path) -> tuple[Path, Manifest]:
    weights = some_lora(model, rank=4, alpha=4)
    save_lora(weights, tmp_path / "adapter.safetensors")
    draft = draft_of(weights, model.flavour, origin="trained")
    manifest = publish(FileStorage(tmp_path / "root"), "ink", draft, tmp_path / "adapter.safetensors")
    return tmp_path / "adapter.safetensors", manifest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": 99.0}, "its manifest gives alpha 99.0, and its weights have 4.0"),
        ({"rank": 8}, "its manifest gives rank 8, and its weights have 4"),
        ({"tensors": 2}, "its manifest gives tensors 2, and its weights have"),
        ({"use_dora": True}, "its manifest gives use_dora true, and its weights have false"),
        ({"target_modules": ("x",)}, r'its manifest gives target_modules \["x"\], and its weights have'),
    ],
)
def test_weights_that_contradict_their_manifest_are_refused(
    version: tuple[Path, Manifest], changes: dict[str, Any], message: str
) -> None:
    path, manifest = version
    assert load_version(path, manifest).alpha == 4
    with pytest.raises(AdapterError, match=message) as caught:
        load_version(path, manifest.model_copy(update=changes))
    assert caught.value.problems[0].code == "adapter_contradicts_manifest"


def test_the_order_of_modules_has_no_meaning(version: tuple[Path, Manifest]) -> None:
    path, manifest = version
    load_version(path, manifest.model_copy(update={"target_modules": manifest.target_modules[::-1]}))


@pytest.mark.parametrize(
    "alpha", ["true", "1" + "0" * 400, "1" + "0" * 5000, "1e300", "1e-320", "1e400", "NaN", '"4"', "null", "[4]", "0"]
)
def test_a_header_with_another_alpha_is_refused(version: tuple[Path, Manifest], alpha: str) -> None:
    path, _ = version
    metadata = {"lora_adapter_metadata": f'{{"transformer.r": 4, "transformer.lora_alpha": {alpha}}}'}
    save_file(load_file(path), path, metadata=metadata)
    with pytest.raises(AdapterError) as caught:
        load_lora(path)
    assert caught.value.problems[0].code in ("adapter_header_alpha", "adapter_header_not_json")
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 200_000])
def test_a_header_that_is_nested_deeply_is_refused(version: tuple[Path, Manifest], text: str) -> None:
    path, _ = version
    save_file(load_file(path), path, metadata={"lora_adapter_metadata": text})
    with pytest.raises(AdapterError) as caught:
        load_lora(path)
    assert caught.value.problems[0].code == "adapter_header_not_json"


@pytest.mark.parametrize(
    "alpha", ["true", "1" + "0" * 400, "1" + "0" * 5000, "1e300", "1e-320", "1e400", "NaN", "null", "[4]", "0"]
)
def test_a_manifest_with_another_alpha_is_refused(tmp_path: Path, version: tuple[Path, Manifest], alpha: str) -> None:
    _, manifest = version
    path = tmp_path / "root" / "ink" / "1" / "manifest.json"
    path.write_text(path.read_text().replace('"alpha": 4.0', f'"alpha": {alpha}'))
    with pytest.raises(AdapterError, match="its manifest is invalid") as caught:
        artifact.read_manifest(FileStorage(tmp_path / "root"), "ink", 1)
    assert len(str(caught.value)) < 1000
    assert manifest.alpha == 4


@pytest.mark.parametrize("rank", ["true", "0", "1" + "0" * 400, "4.5", "65537"])
def test_a_manifest_with_another_rank_is_refused(tmp_path: Path, version: tuple[Path, Manifest], rank: str) -> None:
    assert version
    path = tmp_path / "root" / "ink" / "1" / "manifest.json"
    path.write_text(path.read_text().replace('"rank": 4', f'"rank": {rank}'))
    with pytest.raises(AdapterError, match="its manifest is invalid"):
        artifact.read_manifest(FileStorage(tmp_path / "root"), "ink", 1)


def test_a_draft_is_held_to_the_same(version: tuple[Path, Manifest]) -> None:
    fields = json.loads(version[1].model_dump_json(include={*Draft.model_fields}))
    for changes in ({"alpha": 1e300}, {"alpha": True}, {"rank": 0}):
        with pytest.raises(ValidationError):
            Draft.model_validate(fields | changes)


@pytest.mark.parametrize(
    ("value", "alpha", "dtype", "fits"),
    [
        (1e37, 4.0, torch.float32, True),
        (1e37, 1e6, torch.float32, False),
        (60_000.0, 4.0, torch.float16, True),
        (60_000.0, 8.0, torch.float16, False),
        (60_000.0, 8.0, torch.bfloat16, True),
    ],
)
def test_numbers_that_overflow_when_they_are_scaled_are_refused(
    model: Components, value: float, alpha: float, dtype: torch.dtype, fits: bool
) -> None:
    weights = some_lora(model, rank=4)
    layers = {name: LoraLayer(layer.down, torch.full_like(layer.up, value)) for name, layer in weights.layers.items()}
    large = LoraWeights(alpha=alpha, layers=layers)
    targets = lora_targets(model.transformer)
    if fits:
        check_lora(large, targets, max_rank=4, dtype=dtype)
    else:
        with pytest.raises(AdapterError, match="too large for"):
            check_lora(large, targets, max_rank=4, dtype=dtype)
    check_lora(replace(weights, alpha=alpha), targets, max_rank=4, dtype=dtype)
