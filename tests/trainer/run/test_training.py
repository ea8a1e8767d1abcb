"""The training command: real processes on the embedded model, whose adapters are served."""

import io
import json
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from longcat.adapter.artifact import latest_version, read_manifest
from longcat.model.flavour import resolve
from longcat.model.precision import Precision
from longcat.storage.opening import open_storage
from tests.conftest import run_lithograph, serve
from tests.trainer.trainings import STEPS, arguments, begin, checkpoint, pixels, train, train_in_two, wait_for
from trainer.config.options import TrainConfig
from trainer.config.settings import select
from trainer.encode.preparation import Encoders
from trainer.record.run_file import read_metrics, read_run
from trainer.validation.prompts import PromptSettings, validation_prompts


def test_the_manifest_describes_the_training(finished: Path) -> None:
    storage = open_storage((finished.parent / "adapters").as_uri())
    assert latest_version(storage, "flat") == 1
    manifest = read_manifest(storage, "flat", 1)
    assert manifest.training is not None
    assert manifest.training.steps == STEPS
    assert manifest.training.config["lr_scheduler"] == "cosine"
    assert len(manifest.training.losses) == STEPS
    assert (manifest.rank, manifest.alpha, len(manifest.target_modules)) == (16, 16, 24 - 4)
    for key in manifest.validation_images:
        Image.open(io.BytesIO(storage.read(f"flat/1/{key}").content)).verify()
    assert len(manifest.validation_images) == 2  # a Chinese and an English caption
    assert read_run(finished).published == "flat@1"


def test_validation_pictures_are_those_of_the_service(pictures: Path, finished: Path, tmp_path: Path) -> None:
    storage = (finished.parent / "adapters").as_uri()
    dora = tmp_path / "dora"
    done = train(pictures, dora, publish_to=storage, adapter_name="dora", use_dora="true", max_train_steps=2)
    assert done.returncode == 0, done.stderr
    assert read_manifest(open_storage(storage), "dora", 1).use_dora
    required = [f"--require-adapter={name}" for name in ("flat", "dora")]
    with serve(tmp_path, "--adapters", storage, *required) as server:
        drawn = 0
        for name, steps, run in (("flat", STEPS, finished), ("dora", 2, dora)):
            for path in (run / "validation" / f"step-{steps:08d}").glob("*.png"):
                with Image.open(path) as image:
                    shown, scene = np.asarray(image.convert("RGB")), json.loads(image.info["lithograph-validation"])
                for adapters, expected in (
                    ([{"name": name}], shown),
                    ([], pixels(run / "validation/base" / path.name)),
                ):
                    reply = httpx.post(
                        f"{server.url}/generate",
                        json={
                            "prompt": scene["prompt"], "negative_prompt": scene["negative_prompt"], "seed": scene["seed"],
                            "width": scene["width_px"], "height": scene["height_px"], "steps": scene["steps"],
                            "guidance_scale": scene["guidance_scale"], "adapters": adapters,
                        },
                        timeout=60,
                    )  # fmt: skip
                    assert reply.status_code == 200, reply.text
                    assert np.array_equal(np.asarray(Image.open(io.BytesIO(reply.content))), expected)
                    drawn += 1
        assert drawn == 8


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "prodigy", "learning_rate": 1, "lora_targets": "official"},
        {"optimizer": "adamw-schedulefree", "use_rslora": "true", "lora_targets": "all-linear"},
        {"optimizer": "adamw8bit", "base_model_precision": "int8-torchao", "mixed_precision": "bf16"},
        {"base_model_precision": "int8-quanto", "text_encoder_1_precision": "int8-quanto", "gradient_checkpointing": "true",
         "gradient_checkpointing_interval": 2},
        {"base_model_precision": "int4-quanto"},
        {"mixed_precision": "fp16", "max_grad_norm": 0.5},
        {"base_model_precision": "fp8-torchao", "mixed_precision": "bf16", "lora_init_type": "gaussian"},
        {"lr_scheduler": "polynomial", "flow_schedule_shift": 3, "max_grad_norm": 0},
        {"grad_clip_method": "value", "max_grad_norm": 0.001},
        {"use_dora": "true", "base_model_precision": "int8-torchao", "mixed_precision": "bf16"},
    ],
)  # fmt: skip
def test_every_way_to_train_learns_and_resumes(pictures: Path, tmp_path: Path, changes: dict[str, object]) -> None:
    whole = tmp_path / "whole"
    constant = {"checkpointing_steps": 2, "max_train_steps": 4}
    assert (done := train(pictures, whole, **constant, **changes)).returncode == 0, done.stderr
    first = load_file(whole / "adapter.safetensors")
    assert any(tensor.abs().max() > 0 for name, tensor in first.items() if "lora_B" in name)
    parts = tmp_path / "parts"
    process = begin(pictures, parts, **constant, **changes)
    wait_for(process, checkpoint(parts, 2))
    process.kill()
    process.wait()
    assert (done := train(pictures, parts, resume_from_checkpoint="latest", **constant, **changes)).returncode == 0, (
        done.stderr
    )
    assert (parts / "adapter.safetensors").read_bytes() == (whole / "adapter.safetensors").read_bytes()


@pytest.mark.parametrize("split", [False, True], ids=["DDP", "FSDP"])
def test_two_processes_make_the_steps_of_one_with_twice_the_batch(pictures: Path, tmp_path: Path, split: bool) -> None:
    same = {"lora_dropout": 0, "max_train_steps": 4, "optimizer": "adamw", "gradient_accumulation_steps": 2}
    if split:
        same |= {"gradient_checkpointing": "true", "use_dora": "true"}
    one, two = tmp_path / "one", tmp_path / "two"
    assert (done := train(pictures, one, **same, train_batch_size=2)).returncode == 0, done.stderr
    done = train_in_two(pictures, two, **same, train_batch_size=1, fsdp_enable=str(split).lower())
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    losses = [[line.loss for line in read_metrics(path)] for path in (one, two)]
    norms = [[line.gradient_norm for line in read_metrics(path)] for path in (one, two)]
    # Sums in another order, in float32: the gradients agree to a hundred-thousandth, the losses to a millionth.
    assert np.allclose(losses[0], losses[1], rtol=1e-6, atol=0)
    assert np.allclose(norms[0], norms[1], rtol=1e-5, atol=0)
    for path in (two / "validation").rglob("*-*.png"):
        drawn, expected = (pixels(folder).astype(int) for folder in (path, one / path.relative_to(two)))
        assert np.abs(drawn - expected).max() <= 1, path


def test_validate_samples_without_training(finished: Path, tmp_path: Path) -> None:
    done = run_lithograph(
        "validate", "--model_family", "longcat_image", "--model_flavour", "embedded", "--validation_resolution", "128x128",
        "--validation_num_inference_steps", "2", "--validation_guidance", "2", "--adapter",
        str(finished / "adapter.safetensors"), "--output_dir", str(tmp_path / "out"), cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    files = [Path(line) for line in done.stdout.split()]
    assert len(files) == 3
    assert all((tmp_path / file).exists() for file in files)
    last = json.loads([line for line in done.stderr.splitlines() if line.startswith("{")][-1])
    assert (last["event"], last["done"], last["total"]) == (
        "denoising",
        8,
        8,
    )  # two prompts, with and without the adapter, two steps


def test_another_model_has_its_own_base_pictures() -> None:
    config = TrainConfig.model_validate({"model_flavour": "embedded"})
    flavour, device = resolve("embedded"), torch.device("cpu")

    def names(config: TrainConfig, dtype: torch.dtype) -> set[str]:
        encoders = Encoders(
            flavour=flavour, device=device, dtype=dtype, text_encoder_precision=Precision.NO_CHANGE, vae_batch=1
        )
        return {prompt.name for prompt in validation_prompts(select(config, PromptSettings), encoders, ())}

    shrunk = config.model_copy(update={"base_model_precision": "int8-torchao"})
    bases = [names(config, torch.float32), names(shrunk, torch.float32), names(config, torch.bfloat16)]
    assert len(set.union(*bases)) == 3 * len(bases[0])


def test_options_come_from_the_environment_too(pictures: Path, tmp_path: Path) -> None:
    variables = {"LORA_RANK": "4", "VALIDATION_DISABLE": "true", "MAX_TRAIN_STEPS": "500", "NUM_TRAIN_EPOCHS": "1"}
    done = run_lithograph(
        "train", *arguments(pictures, tmp_path / "run"), cwd=tmp_path,
        **{f"LITHOGRAPH_TRAIN_{name}": value for name, value in variables.items()},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    weights = load_file(tmp_path / "run" / "adapter.safetensors")
    assert {tensor.shape[0] for name, tensor in weights.items() if "lora_A" in name} == {4}
    assert read_run(tmp_path / "run").total_steps == STEPS  # arguments override the environment
