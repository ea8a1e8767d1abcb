"""``lithograph distill``: prompts in, an adapter with declared sampling out; resumed bit for bit; errors."""

import json
import subprocess
from pathlib import Path

import pytest

from longcat.adapter.artifact import find
from longcat.adapter.manifest import Sampling
from longcat.adapter.reference import parse_reference
from longcat.storage.opening import open_storage
from tests.conftest import run_lithograph
from trainer.record.run_file import read_run

SMALL = {
    "model_flavour": "embedded", "resolution": "128x128", "train_batch_size": 2, "learning_rate": "1e-3",
    "max_train_steps": 4, "validation_min_change": 0, "validation_prompts": '["a red apple", "一个红苹果"]',
}  # fmt: skip


def distill(folder: Path, output: str, settings: dict[str, object] | None, **changes: object):
    given = SMALL | {"output_dir": folder / output, "cache_dir": folder / "cache"} | changes
    if settings is not None:
        given["distillation"] = json.dumps({"prompts": "prompts.txt", "steps": 2, "teacher_steps": 4} | settings)
    options = [f"{name}={value}" for name, value in given.items()]
    done: subprocess.CompletedProcess[str] = run_lithograph("distill", *options, cwd=folder)
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distillation")
    (folder / "prompts.txt").write_text(
        "a red apple\n\n一只猫，蓝色背景\na red apple\n" + "very " * 60, encoding="utf-8"
    )
    return folder


def test_an_adapter_is_published_with_its_sampling_and_its_training_can_be_resumed(folder: Path) -> None:
    settings = {"trajectories": 5}
    storage = (folder / "adapters").as_uri()
    done = distill(folder, "whole", settings, publish_to=storage, adapter_name="quick")
    assert done.returncode == 0, done.stderr
    manifest = find(open_storage(storage), parse_reference("quick"))
    assert manifest.sampling == Sampling(steps=2, guidance_scale=1)
    assert manifest.training is not None
    assert manifest.training.config["distillation"]["trajectories"] == 5
    record = read_run(folder / "whole")
    assert record.cache["trajectories"].done == 5
    assert record.validations[-1].step == 4
    dropped = json.loads((folder / "whole" / "dataset.json").read_text())["dropped"]
    assert ["prompts.txt:5" in json.dumps(drop) for drop in dropped] == [True]

    for steps in (2, 4):
        done = distill(folder, "parts", settings, max_train_steps=steps, resume_from_checkpoint="latest")
        assert done.returncode == 0, done.stderr
    assert read_run(folder / "parts").cache["trajectories"].hits == 5
    assert (folder / "parts" / "adapter.safetensors").read_bytes() == (
        folder / "whole" / "adapter.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(
    ("settings", "changes", "code", "parts"),
    [
        (None, {}, 78, ["distillation", "missing", "lithograph train"]),
        ({"teacher_steps": 5}, {}, 78, ["distillation.teacher_steps = 5", "not a multiple of steps, 2", "give 4"]),
        ({"teacher_steps": 1}, {}, 78, ["distillation.teacher_steps = 1", "give 2"]),
        ({"on_policy": 2}, {}, 78, ["distillation.on_policy = 2", "at most 1"]),
        ({"stepps": 2}, {}, 78, ["distillation.stepps", "steps"]),
        ({}, {"instance_data_dir": "."}, 78, ["instance_data_dir = .", "prompts alone"]),
        ({}, {"eval_share": 0.1}, 78, ["eval_share = 0.1", "prompts alone"]),
        ({"prompts": "none.txt"}, {}, 65, ["distillation.prompts = none.txt", "No such file"]),
        ({"prompts": "long.txt"}, {}, 65, ["none of the 1 prompts", "at most 32 tokens"]),
        ({"prompts": "chinese.txt"}, {}, 65, ["distillation.prompts = chinese.txt", "GB18030", "UTF-8"]),
        ({"prompts": "latin.txt"}, {}, 65, ["distillation.prompts = latin.txt", "UTF-8"]),
    ],
)
def test_a_wrong_distillation_is_an_error_that_names_field_and_remedy(
    folder: Path, settings: dict[str, object] | None, changes: dict[str, object], code: int, parts: list[str]
) -> None:
    (folder / "long.txt").write_text("very " * 60)
    (folder / "chinese.txt").write_bytes("一只猫".encode("gbk"))  # valid as UTF-8, but nonsense
    (folder / "latin.txt").write_bytes("café".encode("latin-1"))
    done = distill(folder, "wrong", settings, **changes)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    error = next(line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert all(part in error for part in parts), error
