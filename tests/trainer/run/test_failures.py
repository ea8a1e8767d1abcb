"""Failing trainings: their exit codes, records and remaining files."""

import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from longcat.adapter.artifact import latest_version, read_manifest
from longcat.storage.opening import open_storage
from tests.trainer.trainings import arguments, train
from trainer.record.run_file import read_run


@pytest.mark.parametrize(
    ("changes", "code", "part"),
    [({"instance_data_dir": "/nowhere"}, 65, "/nowhere"), ({"device": "cuda"}, 78, "cuda")],
)
def test_what_fails_before_training_is_recorded(
    pictures: Path, tmp_path: Path, changes: dict[str, object], code: int, part: str
) -> None:
    assert train(pictures, tmp_path / "run", **changes).returncode == code
    record = read_run(tmp_path / "run")
    assert (record.state, record.exit_code) == ("failed", code)
    assert part in (record.message or "")


@pytest.mark.parametrize(
    ("changes", "code", "parts"),
    [
        ({"lora_rnk": 3}, 78, ["lora_rnk", "lora_rank"]),
        ({"enable_group_offload": "true"}, 78, ["enable_group_offload", "CPU"]),
        ({"lora_targets": '["attn.to_z"]'}, 78, ["lora_targets", "attn.to_z", "attn.to_q"]),
        ({"device": "cuda"}, 78, ["cuda", "cpu"]),
        ({"fsdp_enable": "true"}, 78, ["fsdp_enable", "torchrun"]),
        ({"instance_data_dir": "/nowhere"}, 65, ["/nowhere"]),
        ({"resume_from_checkpoint": "checkpoint-99"}, 78, ["checkpoint-99", "holds no checkpoint"]),
        ({"publish_to": "ftp://x", "adapter_name": "x"}, 78, ["publish_to", "ftp://x", "s3://"]),
        ({"publish_to": "s3://x", "publish_endpoint_url": "host", "adapter_name": "x"}, 78, ["s3://x", "host", "URL"]),
        ({"validation_prompt": "very " * 40 + "long"}, 78, ["validation_prompts", "very very", "at most 32"]),
        ({"learning_rate": 1e30}, 78, ["loss", "nan", "learning_rate"]),
    ],
)
def test_a_wrong_setting_is_an_error_with_its_own_exit_code(
    pictures: Path, tmp_path: Path, changes: dict[str, object], code: int, parts: list[str]
) -> None:
    done = train(pictures, tmp_path / "run", **changes)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    error = next(line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert all(part in error for part in parts), error


def test_an_unreachable_storage_loses_no_adapter(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "blocked").write_text("a file where a directory is needed")
    output, where = tmp_path / "run", (tmp_path / "blocked" / "adapters").as_uri()
    done = train(pictures, output, publish_to=where, adapter_name="flat", max_train_steps=2)
    assert done.returncode == 69, done.stderr
    assert load_file(output / "adapter.safetensors")
    assert "adapter.safetensors" in done.stderr
    (tmp_path / "blocked").unlink()
    again = train(
        pictures, output, publish_to=where, adapter_name="flat", max_train_steps=2, resume_from_checkpoint="latest"
    )
    assert again.returncode == 0, again.stderr
    assert latest_version(open_storage(where), "flat") == 1


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(pictures: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    # A limit on file sizes stands for a full disk: caches and records fit, an adapter does not.
    program = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (300_000,) * 2); " \
              "sys.argv[0] = 'lithograph'; runpy.run_module('lithograph', run_name='__main__')"  # fmt: skip
    same = {"max_train_steps": 2, "validation_disable": "true", "resume_from_checkpoint": "latest"}
    command = [sys.executable, "-c", program, "train", *arguments(pictures, output, **same)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 69, done.stderr
    error = next(line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert "checkpoint" in error
    assert "check the disk" in error
    assert "Traceback" not in done.stderr
    assert (read_run(output).state, read_run(output).exit_code) == ("failed", 69)
    assert not list((output / "checkpoints").iterdir())  # no partial checkpoint
    assert train(pictures, output, **same).returncode == 0


def test_out_of_memory_has_its_own_exit_code(pictures: Path, tmp_path: Path) -> None:
    program = "import resource, runpy, sys; import trainer.run.pipeline; " \
              "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize(); " \
              "resource.setrlimit(resource.RLIMIT_AS, (used + 2**30,) * 2); " \
              "sys.argv[0] = 'lithograph'; runpy.run_module('lithograph', run_name='__main__')"  # fmt: skip
    big = {"train_batch_size": 512, "max_train_steps": 1, "validation_disable": "true"}
    command = [sys.executable, "-c", program, "train", *arguments(pictures, tmp_path / "run", **big)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 71, done.stderr
    assert "lithograph plan" in done.stderr
    assert read_run(tmp_path / "run").exit_code == 71


def test_an_output_dir_that_cannot_be_written_is_an_early_error(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    done = train(pictures, tmp_path / "run")
    assert done.returncode == 69, done.stderr
    assert "Traceback" not in done.stderr
    assert "output_dir" in done.stderr


def test_an_adapter_that_changes_nothing_is_published_but_not_the_latest(pictures: Path, tmp_path: Path) -> None:
    where = (tmp_path / "adapters").as_uri()
    done = train(
        pictures, tmp_path / "run", publish_to=where, adapter_name="idle", max_train_steps=1, learning_rate=1e-12,
        validation_min_change=0.01,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    storage = open_storage(where)
    assert read_manifest(storage, "idle", 1).version == 1
    assert not (tmp_path / "adapters" / "idle" / "latest").exists()
    assert "validation_min_change" in done.stderr
