"""Trainings on pairs: adapters of a model that edits, published, served, and resumed."""

import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from longcat.adapter.artifact import read_manifest
from longcat.model.flavour import resolve
from longcat.storage.opening import open_storage
from tests.conftest import run_lithograph, serve
from tests.edit_model import picture
from tests.service.http.test_editing import b64, file_of
from tests.trainer.pairs import write_pairs
from tests.trainer.trainings import begin, checkpoint, pixels, train, wait_for
from trainer.record.run_file import read_run

STEPS = 4
STATEFUL = {"use_ema": "true", "gradient_checkpointing": "true", "checkpointing_steps": 2, "validation_steps": 2}


@pytest.fixture(scope="module")
def options(edit_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Write pairs; return the options of a training on them."""
    folder = tmp_path_factory.mktemp("edits")
    (folder / "data.json").write_text(json.dumps(write_pairs(folder)))
    return {
        "model_flavour": str(edit_folder), "instance_data_dir": None, "data_backend_config": str(folder / "data.json"),
        "cache_dir": str(folder / "cache"), "resolution": None, "max_train_steps": STEPS, "eval_share": 0.2,
    }  # fmt: skip


@pytest.fixture(scope="module")
def trained(options: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a published training on pairs."""
    output = tmp_path_factory.mktemp("trained") / "run"
    published = {"publish_to": (output.parent / "adapters").as_uri(), "adapter_name": "invert"}
    done = train(output.parent, output, **options, **STATEFUL, **published)
    assert done.returncode == 0, done.stderr
    return output


def test_the_adapter_is_bound_to_the_model_that_edits(trained: Path, edit_folder: Path) -> None:
    manifest = read_manifest(open_storage((trained.parent / "adapters").as_uri()), "invert", 1)
    assert manifest.base.hash == resolve(str(edit_folder)).hash
    assert len(manifest.validation_images) == 2
    weights = load_file(trained / "adapter.safetensors")
    assert any(tensor.abs().max() > 0 for name, tensor in weights.items() if "lora_B" in name)
    report = read_run(trained).report
    assert report is not None
    assert report.evaluations


@pytest.mark.heavy
def test_validation_pictures_and_edits_of_a_batch_are_those_of_the_service_alone(
    options: dict[str, object], trained: Path, edit_folder: Path, tmp_path: Path
) -> None:
    storage, dora = (trained.parent / "adapters").as_uri(), tmp_path / "dora"
    done = train(
        tmp_path, dora, **options | {"max_train_steps": 2}, use_dora="true", publish_to=storage, adapter_name="dora"
    )
    assert done.returncode == 0, done.stderr
    required = [f"--require-adapter={name}" for name in ("invert", "dora")]
    flavour = ("--flavour", str(edit_folder))
    with serve(tmp_path, *flavour, "--adapters", storage, *required) as server:

        def edit(request: dict[str, Any]) -> bytes:
            reply = httpx.post(f"{server.url}/generate", json=request, timeout=300)
            assert reply.status_code == 200, reply.text
            return reply.content

        for path in (trained / "validation" / f"step-{STEPS:08d}").glob("*.png"):
            with Image.open(path) as image:
                scene = json.loads(image.info["lithograph-validation"])
            with Image.open(trained / "validation/source" / path.name) as source:
                shown = file_of(source.convert("RGB"))
            for adapters, expected in (([{"name": "invert"}], path), ([], trained / "validation/base" / path.name)):
                made = edit({
                    "prompt": scene["prompt"], "negative_prompt": scene["negative_prompt"], "seed": scene["seed"],
                    "steps": scene["steps"], "guidance_scale": scene["guidance_scale"], "adapters": adapters,
                    "image": b64(shown),
                })  # fmt: skip
                assert np.array_equal(np.asarray(Image.open(io.BytesIO(made))), pixels(expected)), path
        shown = b64(file_of(picture(160, 160, seed=9)))
        requests = [
            {"prompt": "invert the colours", "seed": seed, "steps": 4, "image": shown, "adapters": adapters}
            for seed, adapters in enumerate(
                ([{"name": "invert"}], [{"name": "dora"}], [], [{"name": "invert", "scale": 0.5}])
            )
        ]
        alone = [edit(request) for request in requests]
        with ThreadPoolExecutor(len(requests)) as pool:
            together = list(pool.map(edit, requests))
        assert together == alone
        assert len(set(alone)) == len(requests)


@pytest.mark.heavy
@pytest.mark.parametrize(
    "changes",
    [{"use_dora": "true", "base_model_precision": "int8-torchao", "mixed_precision": "bf16", "validation_disable": "true"},
     {"text_encoder_1_precision": "int8-quanto", "base_model_precision": "int8-quanto"}],
)  # fmt: skip
def test_a_training_on_pairs_resumes_to_the_same_bits(
    options: dict[str, object], tmp_path: Path, changes: dict[str, object]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    given = options | STATEFUL | changes
    done = train(tmp_path, whole, **given)
    assert done.returncode == 0, done.stderr
    process = begin(tmp_path, parts, **given)
    wait_for(process, checkpoint(parts, 2))
    process.kill()
    process.wait()
    done = train(tmp_path, parts, resume_from_checkpoint="latest", **given)
    assert done.returncode == 0, done.stderr
    assert (parts / "adapter.safetensors").read_bytes() == (whole / "adapter.safetensors").read_bytes()


def test_validate_edits_given_pictures_and_otherwise_those_of_the_first_pairs(
    options: dict[str, object], trained: Path, tmp_path: Path
) -> None:
    picture(300, 100).save(tmp_path / "a.png")
    given = {"model_flavour": options["model_flavour"], "output_dir": "out", "validation_num_inference_steps": 1}
    inputs = json.dumps([{"path": "a.png", "prompt": "make it blue"}])
    adapter = ["--adapter", str(trained / "adapter.safetensors")]
    for more, size, count in (
        ({"validation_input": inputs}, (224, 80), 1),
        ({"data_backend_config": options["data_backend_config"], "validation_resolution": "64x64"}, (64, 64), 2),
    ):
        flags = [f"--{name}={value}" for name, value in (given | more).items()]
        done = run_lithograph("validate", *flags, *adapter, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        made = [tmp_path / line for line in done.stdout.split()]
        assert len(made) == count + 1  # the grid, too
        with Image.open(made[0]) as image:
            assert image.size == size
    done = run_lithograph("validate", *[f"--{name}={value}" for name, value in given.items()], cwd=tmp_path)
    assert done.returncode == 78
    assert "there is none to edit in validation" in done.stderr
