"""A training with LyCORIS, from its configuration to a published version: checkpoints, moving average, resume."""

import json
import shutil
from pathlib import Path

from longcat.adapter.artifact import read_manifest
from longcat.adapter.verification import load_version
from longcat.adapter.weights.file import load_lora
from longcat.storage.opening import open_storage
from tests.trainer.trainings import checkpoint, train

LYCORIS = {
    "algo": "lokr", "linear_dim": 10000, "factor": 8, "apply_preset": {
        "target_module": ["LongCatImageAttention", "FeedForward"],
        "module_algo_map": {"FeedForward": {"algo": "loha", "dim": 2, "alpha": 2}},
    },
}  # fmt: skip


def test_a_run_is_published_and_resumed_with_the_same_bits(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "lycoris.json").write_text(json.dumps(LYCORIS))
    storage = (tmp_path / "adapters").as_uri()
    options = {
        "lora_type": "lycoris", "lycoris_config": str(tmp_path / "lycoris.json"), "max_train_steps": 4, "use_ema": "true",
        "checkpointing_steps": 2, "gradient_checkpointing": "true", "publish_to": storage, "adapter_name": "flat",
        "validation_prompt": "一个方块", "learning_rate": "1e-2",
    }  # fmt: skip
    done = train(pictures, tmp_path / "run", **options)
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(open_storage(storage), "flat", 1)
    assert (manifest.kind, manifest.use_dora) == ("loha+lokr", False)
    file = tmp_path / "run" / "adapter.safetensors"
    weights = load_version(file, manifest)
    assert all(layer.delta().any() for layer in weights.layers.values())
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    shutil.rmtree(checkpoint(tmp_path / "again", 4).parent)
    (tmp_path / "again" / "adapter.safetensors").unlink()
    done = train(pictures, tmp_path / "again", **options, resume_from_checkpoint="latest")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "again" / "adapter.safetensors").read_bytes() == file.read_bytes()
    for step in (2, 4):
        assert load_lora(checkpoint(tmp_path / "run", step).parent / "adapter.safetensors").kind == "loha+lokr"
