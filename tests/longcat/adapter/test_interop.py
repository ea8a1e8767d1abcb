"""Adapters between programs, compared by pictures.

Our adapters give the same pictures in plain diffusers, and files in the conventions of SimpleTuner and the official trainer
give the pictures of those programs.
"""

import copy
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import httpx
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import LongCatImagePipeline
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from lithograph.adapters import adapters
from longcat.adapter.modules import lora_targets
from longcat.adapter.weights.lora import LoraWeights
from longcat.model.loading import Components
from longcat.storage.interface import Storage
from longcat.storage.opening import open_storage
from tests.conftest import RunningServer, serve
from tests.longcat.adapter.foreign.comfyui_keys import comfyui_keys
from tests.longcat.adapter.foreign.test_reading import trained, updates
from tests.longcat.sampling.test_denoise import PIXEL_TOLERANCE, encode
from tests.longcat.sampling.test_slots import random_lora
from tests.service.adapters.conftest import put

PROMPT = "一只猫，蓝色背景"
STEPS, GUIDANCE, SEED, SIZE_PX = 6, 3.0, 11, 128


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return open_storage(tmp_path_factory.mktemp("adapters").as_uri())


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, storage: Storage) -> Iterator[RunningServer]:
    options = ("--adapters", storage.uri, "--adapter-rank", "32", "--adapter-poll-seconds", "0.3", "--dtype", "float32")
    with serve(tmp_path_factory.mktemp("server"), *options) as server:
        yield server


@pytest.fixture(scope="module")
def pipeline(model: Components) -> Iterator[LongCatImagePipeline]:
    """Return the published pipeline. Embeddings are ours, because transformers 5 numbers a prompt's tokens differently."""
    diffusers.utils.logging.disable_progress_bar()
    loaded = LongCatImagePipeline.from_pretrained(model.flavour.folder, dtype=torch.float32)
    loaded.tokenizer_max_length = 32
    loaded.set_progress_bar_config(disable=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loaded, "_encode_prompt", lambda prompts: encode(model, prompts[0]))
        yield loaded


@pytest.fixture
def plain(pipeline: LongCatImagePipeline) -> Iterator[LongCatImagePipeline]:
    """Return the pipeline with a transformer that a test can change."""
    base, pipeline.transformer = pipeline.transformer, copy.deepcopy(pipeline.transformer)
    yield pipeline
    pipeline.transformer = base


def drawn(pipeline: LongCatImagePipeline) -> np.ndarray[Any, Any]:
    picture = pipeline(
        PROMPT, negative_prompt="", height=SIZE_PX, width=SIZE_PX, num_inference_steps=STEPS, guidance_scale=GUIDANCE,
        enable_prompt_rewrite=False, generator=torch.Generator().manual_seed(SEED), output_type="np",
    ).images[0]  # fmt: skip
    return (picture * 255).round().astype(int)


def served(running: RunningServer, *names: str) -> np.ndarray[Any, Any]:
    body = {
        "prompt": PROMPT, "width": SIZE_PX, "height": SIZE_PX, "steps": STEPS, "guidance_scale": GUIDANCE, "seed": SEED,
        "adapters": [{"name": name} for name in names],
    }  # fmt: skip
    for name in names:
        httpx.post(f"{running.url}/v1/adapters/{name}/load", timeout=60).raise_for_status()
    reply = httpx.post(f"{running.url}/generate", json=body, timeout=120)
    assert reply.status_code == 200, reply.text
    return np.asarray(Image.open(io.BytesIO(reply.content))).astype(int)


def assert_same_picture(running: RunningServer, name: str, theirs: np.ndarray[Any, Any]) -> None:
    ours = served(running, name)
    assert np.abs(ours - theirs).max() <= PIXEL_TOLERANCE
    assert np.abs(ours - served(running)).mean() > 2, "the adapter changes too little for the comparison to mean much"


def run(*arguments: str) -> str:
    result = CliRunner().invoke(adapters, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("alpha", [16.0, 24.0])
def test_a_published_adapter_draws_the_same_in_plain_diffusers(
    running: RunningServer,
    storage: Storage,
    model: Components,
    plain: LongCatImagePipeline,
    tmp_path: Path,
    alpha: float,
) -> None:
    weights = random_lora(lora_targets(model.transformer), seed=int(alpha), rank=16, alpha=alpha)
    manifest = put(storage, model, tmp_path, f"ours-{alpha:.0f}", weights)
    folder = Path(storage.uri.removeprefix("file://"), manifest.name, str(manifest.version))
    plain.transformer.load_lora_adapter(folder, weight_name="adapter.safetensors", prefix="transformer")
    assert_same_picture(running, manifest.name, drawn(plain))


def test_an_adapter_by_simpletuners_conventions_is_served_as_it_draws(
    running: RunningServer, storage: Storage, plain: LongCatImagePipeline, tmp_path: Path
) -> None:
    # Its defaults: attention alone, alpha = rank; its file has no alpha.
    config = LoraConfig(r=16, lora_alpha=16, lora_dropout=0.1, target_modules=["to_k", "to_q", "to_v", "to_out.0"])
    plain.transformer.add_adapter(config)
    trained(plain.transformer.eval(), size=0.1)
    plain.transformer.save_lora_adapter(tmp_path)
    file = tmp_path / "pytorch_lora_weights.safetensors"
    tensors = {f"transformer.{key}": tensor for key, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    output = run("import", str(tmp_path), "--name", "simpletuner", "--storage", storage.uri)
    assert "diffusers format, 20 modules, rank 16, alpha 16 (the rank" in output
    assert_same_picture(running, "simpletuner", drawn(plain))


def test_an_adapter_by_the_official_trainers_conventions_is_served_as_it_draws(
    running: RunningServer, storage: Storage, plain: LongCatImagePipeline, tmp_path: Path
) -> None:
    # Its defaults: also the prompt's attention and the double blocks' feed-forward; alpha left at PEFT's 8.
    ends = (
        "attn.to_k", "attn.to_q", "attn.to_v", "attn.to_out.0", "attn.add_k_proj", "attn.add_q_proj", "attn.add_v_proj",
        "attn.to_add_out", "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2",
    )  # fmt: skip
    tuned = get_peft_model(plain.transformer, LoraConfig(r=32, init_lora_weights="gaussian", target_modules=list(ends)))
    trained(tuned.eval(), size=0.5)
    tuned.save_pretrained(tmp_path)
    output = run("import", str(tmp_path), "--name", "official", "--storage", storage.uri)
    assert "official format" in output
    assert "rank 32, alpha 8\n" in output
    plain.transformer = tuned.base_model.model
    assert_same_picture(running, "official", drawn(plain))


def comfyui_updates(
    tensors: dict[str, Tensor], *, hidden: int, blocks: dict[str, int], beside: bool = False
) -> dict[str, Tensor]:
    """Compute the updates that ComfyUI adds to its weights, by its rules; every tensor of the file must be used."""
    left, added = dict(tensors), {}
    for key, (own, first, rows) in comfyui_keys(**blocks, beside=beside):
        up, down = left.pop(f"{key}.lora_B.weight", None), left.pop(f"{key}.lora_A.weight", None)
        alpha = left.pop(f"{key}.alpha", None)
        if up is None or down is None:
            continue
        assert up.shape[0] == rows * hidden
        scale = 1.0 if alpha is None else alpha.item() / down.shape[0]
        whole = added.setdefault(own, {})
        whole[first * hidden] = up.double() @ down.double() * scale
    assert not left, "keys that ComfyUI would warn about and ignore"
    return {own: torch.cat([parts[first] for first in sorted(parts)]) for own, parts in added.items()}


def test_a_comfyui_export_maps_onto_the_keys_that_comfyui_reads(
    storage: Storage, model: Components, tmp_path: Path
) -> None:
    targets = lora_targets(model.transformer)
    config = model.transformer.config
    blocks = {"double": config.num_layers, "single": config.num_single_layers}
    assert {key.removeprefix("transformer.") for key, _ in comfyui_keys(**blocks)} == set(targets)

    weights = random_lora(targets, seed=5, rank=8, alpha=12, only=("",))  # every layer
    put(storage, model, tmp_path / "files", "everywhere", weights)
    file = tmp_path / "comfyui.safetensors"
    run("export", "everywhere", "--format", "comfyui", "-o", str(file), "--storage", storage.uri)
    hidden = config.num_attention_heads * config.attention_head_dim
    theirs = comfyui_updates(load_file(file), hidden=hidden, blocks=blocks)
    assert_equal_updates(theirs, weights, blocks)


def assert_equal_updates(theirs: dict[str, Tensor], weights: LoraWeights, blocks: dict[str, int]) -> None:
    ours: dict[str, list[Tensor]] = {}
    update = updates(weights)
    for key, (own, _, _) in sorted(comfyui_keys(**blocks), key=lambda mapped: mapped[1]):
        ours.setdefault(own, []).append(update[key.removeprefix("transformer.")])
    assert theirs.keys() == ours.keys()
    for own, parts in ours.items():
        torch.testing.assert_close(theirs[own], torch.cat(parts), rtol=1e-12, atol=1e-12)
