"""The trainer as a person runs it: real processes on the embedded model, killed, resumed, refused, and served."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from longcat.adapter import latest_version, list_versions, read_manifest
from longcat.flavour import resolve
from longcat.precision import Precision
from longcat.storage import open_storage
from tests.conftest import run_lithograph, serve
from trainer.config import TrainConfig
from trainer.preparation import Encoders
from trainer.run_record import read_metrics, read_run
from trainer.validation import scenes

STEPS = 8
SMALL = {
    "model_flavour": "embedded", "resolution": "128", "max_train_steps": str(STEPS), "train_batch_size": "2",
    "learning_rate": "1e-3", "validation_num_inference_steps": "2", "validation_min_change": "0",
}  # fmt: skip
START_SECONDS = 300


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures with captions in both languages, two of them of another shape."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for i in range(6):
        size = (128, 128) if i < 4 else (192, 128)
        colour = tuple(int(c) for c in generator.integers(0, 255, 3))
        image = Image.new("RGB", size, colour)
        image.paste((255, 255, 255), (32, 32, 96, 96))
        image.save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text("a square, flat style" if i % 2 else "一个方块，平面风格", encoding="utf-8")
    return folder


def arguments(pictures: Path, output: Path, **changes: object) -> list[str]:
    said = SMALL | {
        "instance_data_dir": str(pictures),
        "output_dir": str(output),
        "cache_dir": str(pictures / ".cache"),
    }
    return [f"{key}={value}" for key, value in (said | {k: str(v) for k, v in changes.items()}).items()]


def train(pictures: Path, output: Path, **changes: object) -> subprocess.CompletedProcess[str]:
    return run_lithograph("train", *arguments(pictures, output, **changes), cwd=output.parent)


def begin(pictures: Path, output: Path, **changes: object) -> subprocess.Popen[bytes]:
    output.parent.mkdir(parents=True, exist_ok=True)
    with (output.parent / f"{output.name}.log").open("ab") as log:
        command = [sys.executable, "-m", "lithograph", "train", *arguments(pictures, output, **changes)]
        return subprocess.Popen(command, stdout=log, stderr=log)


def wait_for(process: subprocess.Popen[bytes], path: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not path.exists():
        assert process.poll() is None, "the training ended"
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.005)


def checkpoint(output: Path, step: int) -> Path:
    return output / "checkpoints" / f"step-{step:08d}" / "checkpoint.json"


@pytest.fixture(scope="module")
def finished(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run with everything that has a state, published."""
    output = tmp_path_factory.mktemp("finished") / "run"
    done = train(pictures, output, publish_to=(output.parent / "adapters").as_uri(), adapter_name="flat", **STATEFUL)
    assert done.returncode == 0, done.stderr
    return output


STATEFUL = {
    "use_ema": "true", "gradient_accumulation_steps": 2, "lr_scheduler": "cosine", "lr_warmup_steps": 3,
    "checkpointing_steps": 2, "checkpoints_total_limit": 2, "gradient_checkpointing": "true", "validation_steps": 2,
}  # fmt: skip


def test_killed_at_any_moment_and_resumed_it_ends_bitwise_the_same(
    pictures: Path, finished: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    for step in (2, 6):
        process = begin(pictures, output, resume_from_checkpoint="latest", **STATEFUL)
        wait_for(process, checkpoint(output, step))
        process.kill()
        process.wait()
    done = train(pictures, output, resume_from_checkpoint="latest", **STATEFUL)
    assert done.returncode == 0, done.stderr
    assert (output / "adapter.safetensors").read_bytes() == (finished / "adapter.safetensors").read_bytes()
    # Steps made twice are recorded once, with the same losses.
    again, once = ([(line.step, line.loss) for line in read_metrics(path)] for path in (output, finished))
    assert again == once
    assert [step for step, _ in again] == list(range(1, STEPS + 1))
    # So are validations, of steps too at which it was killed before they were over.
    for path in (output, finished):
        assert [made.step for made in read_run(path).validations] == list(range(2, STEPS + 1, 2))


def test_only_the_newest_checkpoints_are_kept(finished: Path) -> None:
    kept = sorted(path.name for path in (finished / "checkpoints").iterdir())
    assert kept == [f"step-{step:08d}" for step in (STEPS - 2, STEPS)]


def test_what_is_published_says_how_it_came_about(finished: Path) -> None:
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


def test_starting_again_after_the_end_publishes_nothing_twice(finished: Path, pictures: Path) -> None:
    storage_uri = (finished.parent / "adapters").as_uri()
    for _ in range(2):
        done = train(
            pictures, finished, publish_to=storage_uri, adapter_name="flat", resume_from_checkpoint="latest", **STATEFUL
        )
        assert done.returncode == 0, done.stderr
        assert list(list_versions(open_storage(storage_uri))) == [("flat", 1)]
        assert read_run(finished).published == "flat@1"
        (finished / "published.json").unlink()  # as if killed just before it was written


def test_validation_shows_what_the_service_draws(pictures: Path, finished: Path, tmp_path: Path) -> None:
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


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_sigterm_saves_a_checkpoint_and_says_so(pictures: Path, finished: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    process = begin(pictures, output, **STATEFUL)
    wait_for(process, checkpoint(output, 2))
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 75
    record = read_run(output)
    assert (record.state, record.exit_code) == ("preempted", 75)
    stopped_at = record.step
    assert checkpoint(output, stopped_at).exists()
    done = train(pictures, output, resume_from_checkpoint="latest", **STATEFUL)
    assert done.returncode == 0, done.stderr
    assert (output / "adapter.safetensors").read_bytes() == (finished / "adapter.safetensors").read_bytes()


def test_sigterm_while_validating_saves_what_was_trained_since(pictures: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    changes = {"validation_steps": 1, "validation_num_inference_steps": 300}
    process = begin(pictures, output, **changes)
    wait_for(process, output / "validation" / "base")  # the first picture of several is done
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 75
    assert checkpoint(output, 1).exists()
    assert not (output / "adapter.safetensors").exists()


def test_every_try_of_a_run_has_the_same_name(pictures: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    names = []
    for _ in range(2):
        train(pictures, output, max_train_steps=1, resume_from_checkpoint="latest", validation_disable="true")
        names.append(read_run(output).run_id)
    assert names[0] == names[1]
    train(pictures, output, max_train_steps=1, validation_disable="true")
    assert read_run(output).run_id != names[0]


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


def test_a_damaged_checkpoint_is_passed_over(pictures: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    assert train(pictures, output, **STATEFUL | {"max_train_steps": 4, "lr_scheduler": "constant"}).returncode == 0
    (output / "checkpoints" / "step-00000004" / "state.pt").write_bytes(b"torn")
    done = train(
        pictures,
        output,
        resume_from_checkpoint="latest",
        **STATEFUL | {"max_train_steps": 4, "lr_scheduler": "constant"},
    )
    assert done.returncode == 0, done.stderr
    assert "checkpoint_damaged" in done.stderr
    assert [line.step for line in read_metrics(output)] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("changes", "code", "parts"),
    [
        ({"lora_rnk": 3}, 78, ["lora_rnk", "lora_rank"]),
        ({"base_model_precision": "int4-quanto"}, 78, ["int4-quanto", "bfloat16"]),
        ({"enable_group_offload": "true"}, 78, ["enable_group_offload", "CPU"]),
        ({"lora_targets": '["attn.to_z"]'}, 78, ["lora_targets", "attn.to_z", "attn.to_q"]),
        ({"device": "cuda"}, 78, ["cuda", "cpu"]),
        ({"fsdp_enable": "true"}, 78, ["fsdp_enable", "torchrun"]),
        ({"instance_data_dir": "/nowhere"}, 65, ["/nowhere"]),
        ({"resume_from_checkpoint": "checkpoint-99"}, 78, ["checkpoint-99", "holds no checkpoint"]),
        ({"publish_to": "ftp://x", "adapter_name": "x"}, 78, ["publish_to", "ftp://x", "s3://"]),
        ({"publish_to": "s3://x", "publish_endpoint_url": "host", "adapter_name": "x"}, 78, ["s3://x", "host", "URL"]),
        ({"validation_prompt": "very " * 40 + "long"}, 78, ["validation prompt", "very long", "at most 32"]),
        ({"learning_rate": 1e30}, 78, ["loss", "nan", "learning_rate"]),
    ],
)
def test_what_cannot_work_is_refused_with_a_code_of_its_own(
    pictures: Path, tmp_path: Path, changes: dict[str, object], code: int, parts: list[str]
) -> None:
    done = train(pictures, tmp_path / "run", **changes)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    error = next(line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert all(part in error for part in parts), error


def test_storage_that_is_down_loses_nothing(pictures: Path, tmp_path: Path) -> None:
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


def test_a_disk_that_refuses_a_checkpoint_costs_what_came_after_the_one_before(pictures: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    # A limit on a file's size stands for the disk: caches and records fit, an adapter does not.
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
    assert not list((output / "checkpoints").iterdir())  # nothing that is half there
    assert train(pictures, output, **same).returncode == 0


def test_what_does_not_fit_has_a_code_of_its_own(pictures: Path, tmp_path: Path) -> None:
    program = "import resource, runpy, sys; import trainer.run; " \
              "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize(); " \
              "resource.setrlimit(resource.RLIMIT_AS, (used + 2**30,) * 2); " \
              "sys.argv[0] = 'lithograph'; runpy.run_module('lithograph', run_name='__main__')"  # fmt: skip
    big = {"train_batch_size": 512, "max_train_steps": 1, "validation_disable": "true"}
    command = [sys.executable, "-c", program, "train", *arguments(pictures, tmp_path / "run", **big)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 71, done.stderr
    assert "lithograph plan" in done.stderr
    assert read_run(tmp_path / "run").exit_code == 71


def test_an_output_that_cannot_be_written_is_said_at_once(pictures: Path, tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "prodigy", "learning_rate": 1, "lora_targets": "official"},
        {"optimizer": "adamw-schedulefree", "use_rslora": "true", "lora_targets": "all-linear"},
        {"optimizer": "adamw8bit", "base_model_precision": "int8-torchao", "mixed_precision": "bf16"},
        {"base_model_precision": "int8-quanto", "text_encoder_1_precision": "int8-quanto", "gradient_checkpointing": "true",
         "gradient_checkpointing_interval": 2},
        {"base_model_precision": "int4-quanto", "mixed_precision": "bf16"},
        {"base_model_precision": "fp8-torchao", "mixed_precision": "bf16", "lora_init_type": "gaussian"},
        {"lr_scheduler": "polynomial", "flow_schedule_shift": 3, "max_grad_norm": 0},
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


def train_in_two(pictures: Path, output: Path, **changes: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "lithograph",
               "train", *arguments(pictures, output, **changes, device="cpu")]  # fmt: skip
    return subprocess.run(command, cwd=output.parent, capture_output=True, text=True, timeout=300, check=False)


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


def test_validate_draws_without_training(finished: Path, tmp_path: Path) -> None:
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
    assert (last["event"], last["done"], last["total"]) == ("drawing", 8, 8)  # two prompts, with and without, two steps


def test_another_model_is_compared_with_its_own_base() -> None:
    config = TrainConfig.model_validate({"model_flavour": "embedded"})
    flavour, device = resolve("embedded"), torch.device("cpu")

    def names(config: TrainConfig, dtype: torch.dtype) -> set[str]:
        encoders = Encoders(
            flavour=flavour, device=device, dtype=dtype, text_encoder_precision=Precision.NO_CHANGE, vae_batch=1
        )
        return {scene.name for scene in scenes(config, encoders, ())}

    shrunk = config.model_copy(update={"base_model_precision": "int8-torchao"})
    bases = [names(config, torch.float32), names(shrunk, torch.float32), names(config, torch.bfloat16)]
    assert len(set.union(*bases)) == 3 * len(bases[0])


def test_the_environment_fills_in_for_containers(pictures: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lithograph", "train", *arguments(pictures, tmp_path / "run")],
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "LITHOGRAPH_TRAIN_LORA_RANK": "4", "LITHOGRAPH_TRAIN_VALIDATION_DISABLE": "true",
             "LITHOGRAPH_TRAIN_MAX_TRAIN_STEPS": "500", "LITHOGRAPH_TRAIN_NUM_TRAIN_EPOCHS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    weights = load_file(tmp_path / "run" / "adapter.safetensors")
    assert {tensor.shape[0] for name, tensor in weights.items() if "lora_A" in name} == {4}
    assert read_run(tmp_path / "run").total_steps == STEPS  # the argument counts more
