"""Whole trainings with regularisation data, masks and captions by share at once: resumed, and in two processes."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.trainer.trainings import begin, checkpoint, train, train_in_two, wait_for
from trainer.data.scan import REPORT_FILE
from trainer.record.run_file import read_metrics

STEPS = 6


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a file of datasets: four masked pictures with captions in two languages, and three regularisation pictures."""
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    for name in ("learned", "masks", "prior"):
        (folder / name).mkdir()
    for i in range(4):
        size = (128, 128) if i < 3 else (192, 128)
        Image.new("RGB", size, tuple(int(c) for c in generator.integers(0, 255, 3))).save(folder / f"learned/{i}.png")
        (folder / f"learned/{i}.zh.txt").write_text("一个方块", encoding="utf-8")
        (folder / f"learned/{i}.en.txt").write_text("a square\na box", encoding="utf-8")
        mask = Image.new("L", size)
        mask.paste(255, (0, 0, size[0] // 2, 128))
        mask.save(folder / f"masks/{i}.png")
    for i in range(3):
        Image.fromarray(generator.integers(0, 255, (128, 128, 3), dtype=np.uint8)).save(folder / f"prior/{i}.png")
    entries = [
        {"id": "learned", "instance_data_dir": str(folder / "learned"), "conditioning_data": "masks", "repeats": 1,
         "caption_endings": [".zh.txt", ".en.txt"], "caption_shares": {"zh": 1, "en": 1}},
        {"id": "prior", "instance_data_dir": str(folder / "prior"), "caption_strategy": "instanceprompt",
         "instance_prompt": "a pattern", "is_regularisation_data": True},
        {"id": "masks", "instance_data_dir": str(folder / "masks"), "dataset_type": "conditioning",
         "conditioning_type": "mask"},
    ]  # fmt: skip
    (folder / "datasets.json").write_text(json.dumps(entries))
    return folder


def options(data: Path) -> dict[str, object]:
    return {
        "instance_data_dir": None, "data_backend_config": data / "datasets.json", "max_train_steps": STEPS,
        "use_ema": "true", "checkpointing_steps": 3, "masked_loss_probability": 0.7,
        "validation_disable": "true", "cache_dir": data / "cache",
    }  # fmt: skip


def test_a_run_that_is_killed_and_resumed_ends_with_the_same_bits(data: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    given = options(data) | {"use_dora": "true"}
    assert (done := train(data, whole, **given)).returncode == 0, done.stderr
    report = json.loads((whole / REPORT_FILE).read_text(encoding="utf-8"))
    assert [(entry["masked"], entry["regularisation"]) for entry in report["datasets"] if entry["pictures"]] == [
        (4, False), (0, True),
    ]  # fmt: skip
    process = begin(data, parts, **given)
    wait_for(process, checkpoint(parts, 3))
    process.kill()
    process.wait()
    assert (done := train(data, parts, resume_from_checkpoint="latest", **given)).returncode == 0, done.stderr
    assert (parts / "adapter.safetensors").read_bytes() == (whole / "adapter.safetensors").read_bytes()


LYCORIS = {
    "algo": "lokr", "linear_dim": 4, "linear_alpha": 2, "factor": 8,
    "apply_preset": {"target_module": ["LongCatImageAttention", "FeedForward"],
                     "module_algo_map": {"FeedForward": {"algo": "loha", "dim": 2, "alpha": 1}}},
}  # fmt: skip


@pytest.mark.parametrize("kind", ["lora", "lycoris"])
def test_two_processes_with_a_split_base_make_the_steps_of_one(data: Path, tmp_path: Path, kind: str) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    given = options(data) | {"lora_dropout": 0}
    if kind == "lycoris":
        (tmp_path / "lycoris.json").write_text(json.dumps(LYCORIS))
        given = options(data) | {"lora_type": "lycoris", "lycoris_config": tmp_path / "lycoris.json"}
    assert (done := train(data, one, **given, train_batch_size=2)).returncode == 0, done.stderr
    done = train_in_two(data, two, **given, train_batch_size=1, fsdp_enable="true")
    assert done.returncode == 0, done.stderr
    losses = [[line.loss for line in read_metrics(path)] for path in (one, two)]
    assert len(losses[0]) == STEPS
    assert np.allclose(losses[0], losses[1], rtol=1e-5, atol=1e-9)
    assert min(losses[0]) < 0.1 * max(losses[0])  # of regularisation data, which the adapter has hardly changed yet
