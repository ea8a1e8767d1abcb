"""The adapter artifact, on a directory and on S3: published atomically, immutable, rejected if it does not fit."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer as PeftLayer
from safetensors.torch import save_file

from longcat.adapter import artifact as adapter
from longcat.adapter.artifact import fetch
from longcat.adapter.manifest import BaseIdentity, Draft
from longcat.adapter.modules import lora_targets
from longcat.adapter.publishing import publish, set_latest
from longcat.adapter.reference import Reference, parse_new_name, parse_reference
from longcat.adapter.verification import check_lora
from longcat.adapter.weights.file import load_lora, save_lora
from longcat.adapter.weights.lora import LoraLayer, LoraWeights
from longcat.errors import AdapterError, StorageConflictError, StorageError, StorageMissingError
from longcat.model.flavour import EMBEDDED_FOLDER, Flavour
from longcat.model.loading import Components, load
from longcat.model.published.models import HUB_IDS
from longcat.storage.interface import Storage
from tests.longcat.sampling.test_denoise import begin, finish

TARGETS = ("attn.to_q", "attn.to_v", "proj_mlp", "ff.net.2")


def some_lora(model: Components, *, rank: int = 4, alpha: float = 8.0, seed: int = 0) -> LoraWeights:
    generator = torch.Generator().manual_seed(seed)
    layers = {
        name: LoraLayer(
            torch.randn(rank, width_in, generator=generator) * 0.05,
            torch.randn(width_out, rank, generator=generator) * 0.05,
        )
        for name, (width_in, width_out) in lora_targets(model.transformer).items()
        if name.endswith(TARGETS)
    }
    return LoraWeights(alpha=alpha, layers=layers)


def draft(flavour: Flavour, weights: LoraWeights) -> Draft:
    return Draft(
        base=BaseIdentity(flavour=flavour.name, revision=None, hash=flavour.hash),
        rank=weights.rank,
        alpha=weights.alpha,
        target_modules=tuple(sorted(weights.layers)),
        tensors=2 * len(weights.layers),
        trigger_words=("墨",),
        origin="trained",
    )


@pytest.fixture
def file(model: Components, tmp_path: Path) -> Path:
    save_lora(some_lora(model), tmp_path / "adapter.safetensors")
    return tmp_path / "adapter.safetensors"


def test_a_published_version_is_found_fetched_and_never_changes(
    storage: Storage, model: Components, file: Path, tmp_path: Path
) -> None:
    first = publish(storage, "ink", draft(model.flavour, some_lora(model)), file)
    assert (first.reference, first.trigger_words) == ("ink@1", ("墨",))
    assert list(adapter.list_versions(storage)) == [("ink", 1)]
    with pytest.raises(StorageMissingError):
        adapter.latest_version(storage, "ink")
    set_latest(storage, "ink", 1)
    assert adapter.latest_version(storage, "ink") == 1
    second = publish(storage, "ink", draft(model.flavour, some_lora(model)), file)
    assert second.version == 2
    assert adapter.latest_version(storage, "ink") == 1
    set_latest(storage, "ink", 2)
    set_latest(storage, "ink", 1, only_forward=True)
    assert adapter.latest_version(storage, "ink") == 2
    set_latest(storage, "ink", 1)  # a rollback
    assert adapter.latest_version(storage, "ink") == 1
    with pytest.raises(StorageMissingError):
        set_latest(storage, "ink", 3)
    assert adapter.read_manifest(storage, "ink", 1) == first
    fetched = fetch(storage, first, tmp_path / "cache")
    assert fetched.read_bytes() == file.read_bytes()
    with pytest.raises(StorageConflictError):
        storage.create("ink/1/manifest.json", b"{}")


@pytest.mark.parametrize("name", ["embedded", "final", "dev", "mine"])
def test_the_name_of_a_model_is_no_name_of_an_adapter(
    storage: Storage, model: Components, file: Path, name: str
) -> None:
    described = draft(model.flavour, some_lora(model))
    own = described.model_copy(update={"base": described.base.model_copy(update={"flavour": "mine"})})
    with pytest.raises(AdapterError, match=r"the name of a base model.*; give another name"):
        publish(storage, name, own, file)
    assert list(storage.list()) == []


def test_the_models_that_have_a_name_are_known(model: Components) -> None:
    for name in (EMBEDDED_FOLDER.name, model.flavour.name, *HUB_IDS):
        with pytest.raises(AdapterError):
            parse_new_name(name)


def test_publishers_at_once_get_a_version_each(opener: Callable[[], Storage], model: Components, file: Path) -> None:
    described = draft(model.flavour, some_lora(model))
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: publish(opener(), "ink", described, file), range(4)))
    assert sorted(m.version for m in made) == [1, 2, 3, 4]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda m: set_latest(opener(), "ink", m.version, only_forward=True), made))
    assert adapter.latest_version(opener(), "ink") == 4


def test_weights_without_a_manifest_are_not_seen_and_their_number_is_skipped(
    storage: Storage, model: Components, file: Path
) -> None:
    storage.create("ink/1/adapter.safetensors", file)  # a publisher that was killed at this point
    assert list(adapter.list_versions(storage)) == []
    assert publish(storage, "ink", draft(model.flavour, some_lora(model)), file).version == 2


def test_a_publication_that_fails_leaves_nothing(storage: Storage, model: Components, file: Path) -> None:
    described = draft(model.flavour, some_lora(model))
    with pytest.raises(StorageError, match="not a valid key"):
        publish(storage, "ink", described, file, extras={"picture.png": file, "a picture": file})
    assert list(storage.list()) == []
    assert publish(storage, "ink", described, file).version == 1


def test_what_is_no_version_of_an_adapter_is_passed_over(storage: Storage, model: Components, file: Path) -> None:
    described = draft(model.flavour, some_lora(model))
    publish(storage, "ink", described, file)
    for key in ("Ink/1/manifest.json", "ink/0/manifest.json", f"ink/{'1' * 40}/manifest.json", "ink/x/manifest.json"):
        storage.create(key, b"{}")
    assert list(adapter.list_versions(storage)) == [("ink", 1)]
    assert publish(storage, "ink", described, file).version == 2


@pytest.mark.parametrize(
    "content", [b"", b"one", b"0", b"-1", b"1_0", b"1" * 300, b"1" * 5000, "１".encode(), b"\xff", b"1 2"]
)
def test_a_latest_that_is_no_version_is_an_error(storage: Storage, content: bytes) -> None:
    storage.create("ink/latest", content)
    with pytest.raises(AdapterError, match="not the number of a version; roll back to a version"):
        adapter.latest_version(storage, "ink")


def test_damaged_weights_are_refused_and_leave_no_file(
    storage: Storage, model: Components, file: Path, tmp_path: Path
) -> None:
    manifest = publish(storage, "ink", draft(model.flavour, some_lora(model)), file)
    storage.delete("ink/1/adapter.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    storage.create("ink/1/adapter.safetensors", bytes(content))
    with pytest.raises(AdapterError, match="adapter = ink@1: its weights are damaged"):
        fetch(storage, manifest, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_manifests_that_are_broken_or_copied_are_errors(storage: Storage, model: Components, file: Path) -> None:
    manifest = publish(storage, "ink", draft(model.flavour, some_lora(model)), file)
    fields = json.loads(manifest.model_dump_json())
    storage.create("oil/1/manifest.json", manifest.model_dump_json().encode())
    storage.create("ink/7/manifest.json", json.dumps(fields | {"alpha": -1}).encode())
    with pytest.raises(AdapterError, match="oil@1: its manifest is that of ink@1"):
        adapter.read_manifest(storage, "oil", 1)
    with pytest.raises(AdapterError, match="ink@7: its manifest is invalid: alpha: too small"):
        adapter.read_manifest(storage, "ink", 7)


def test_the_unknown_fields_of_a_manifest_are_named(storage: Storage, model: Components, file: Path) -> None:
    manifest = publish(storage, "ink", draft(model.flavour, some_lora(model)), file)
    fields = json.loads(manifest.model_dump_json()) | {"version": 7, "colour": "black"}
    storage.create("ink/7/manifest.json", json.dumps(fields).encode())
    with pytest.raises(AdapterError, match="ink@7: its manifest is invalid: colour: unknown field"):
        adapter.read_manifest(storage, "ink", 7)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Ink",
        "ink@",
        "ink@0",
        "ink@x",
        "a/b",
        "../a",
        "ink@1@2",
        "ink\n",
        "ink@1\n",
        "ink\n@1",
        "墨",
        "ink@１",
        "a" * 64,
    ],
)
def test_names_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(AdapterError, match="ink, or ink@3"):
        parse_reference(text)


def test_references_name_a_version_or_the_latest() -> None:
    assert parse_reference("ink") == Reference(name="ink", version=None)
    assert parse_reference("ink@3") == Reference(name="ink", version=3)


def test_a_file_is_read_as_written_and_diffusers_applies_its_scale(model: Components, file: Path) -> None:
    weights = some_lora(model)
    read = load_lora(file)
    assert read.alpha == 8.0
    assert read.layers.keys() == weights.layers.keys()
    assert all(torch.equal(read.layers[name].up, layer.up) for name, layer in weights.layers.items())

    def drawn(change: Callable[[Components], None]) -> torch.Tensor:
        fresh = load(model.flavour, device="cpu")
        change(fresh)
        picture = begin(fresh, steps=2)
        finish(fresh, picture)
        return picture.latents_1NC

    def by_diffusers(fresh: Components) -> None:
        fresh.transformer.load_lora_adapter(file, weight_name=file.name, prefix="transformer")
        assert any(isinstance(m, PeftLayer) for m in fresh.transformer.modules())

    def merged(fresh: Components) -> None:
        for name, layer in weights.layers.items():
            update = layer.up @ layer.down * (weights.alpha / weights.rank)
            fresh.transformer.get_submodule(name).weight.data += update

    plain = drawn(lambda _: None)
    torch.testing.assert_close(drawn(by_diffusers), drawn(merged), rtol=0, atol=1e-4)
    assert (drawn(merged) - plain).abs().max() > 0.01


def test_peft_can_target_everything_that_an_adapter_may_change(model: Components) -> None:
    fresh = load(model.flavour, device="cpu")
    targets = lora_targets(fresh.transformer)
    assert len(targets) == 2 * 12 + 4 * 5
    fresh.transformer.add_adapter(LoraConfig(r=2, target_modules=list(targets)))
    assert sum(isinstance(m, PeftLayer) for m in fresh.transformer.modules()) == len(targets)


def test_what_does_not_fit_is_refused_with_its_reason(model: Components) -> None:
    targets = lora_targets(model.transformer)
    good = some_lora(model)
    name, layer = next(iter(good.layers.items()))

    def changed(**layers: LoraLayer) -> LoraWeights:
        return replace(good, layers={**good.layers, **layers})

    check_lora(good, targets, max_rank=4)
    bad = {
        "do not exist in this model or cannot be adapted, such as 'transformer_blocks.9": changed(
            **{"transformer_blocks.9.x": layer}
        ),
        "such as 'transformer_blocks.0.norm1.linear'": changed(**{"transformer_blocks.0.norm1.linear": layer}),
        "ranks 2, 4": changed(**{name: LoraLayer(layer.down[:2], layer.up[:, :2])}),
        "has shape": changed(**{name: LoraLayer(layer.down[:, 1:], layer.up)}),
        "not finite": changed(**{name: LoraLayer(layer.down * float("nan"), layer.up)}),
        "holds int64": changed(**{name: LoraLayer(layer.down.long(), layer.up)}),
    }
    for message, weights in bad.items():
        with pytest.raises(AdapterError, match=message):
            check_lora(weights, targets, max_rank=4)
    with pytest.raises(AdapterError, match="rank 4 exceeds the limit, 2"):
        check_lora(good, targets, max_rank=2)


def test_files_that_are_not_ours_are_refused(tmp_path: Path) -> None:
    down, up = torch.zeros(2, 8), torch.zeros(8, 2)
    header = {"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": 2})}
    files = {
        "has no lora_adapter_metadata in its header": (
            {"transformer.x.lora_A.weight": down, "transformer.x.lora_B.weight": up},
            None,
        ),
        "without 'transformer.x.lora_B.weight'": ({"transformer.x.lora_A.weight": down}, header),
        "which is neither": ({"base_model.model.x.lora_A.weight": down}, header),
        "holds no LoRA weights": ({}, header),
        "gives alpha null, which is not a positive number": ({}, {"lora_adapter_metadata": "{}"}),
        "not a positive number": ({}, {"lora_adapter_metadata": "[]"}),
        "not JSON": ({}, {"lora_adapter_metadata": "{"}),
        "not a matrix": ({"transformer.x.lora_A.weight": torch.zeros(()), "transformer.x.lora_B.weight": up}, header),
    }
    for message, (tensors, metadata) in files.items():
        save_file(tensors, tmp_path / "a.safetensors", metadata=metadata)
        with pytest.raises(AdapterError, match=message):
            load_lora(tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").write_bytes(b"PK\x03\x04 a pickle")
    with pytest.raises(AdapterError, match="not a safetensors file"):
        load_lora(tmp_path / "a.safetensors")
