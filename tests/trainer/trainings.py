"""Trainings as processes on the embedded model, and the files that they leave."""

import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from tests.conftest import run_cold, run_lithograph
from tests.warm import WarmPopen, lithograph, run_module

STEPS = 8
SMALL = {
    "model_flavour": "embedded", "resolution": "128", "max_train_steps": str(STEPS), "train_batch_size": "2",
    "learning_rate": "1e-3", "validation_num_inference_steps": "2", "validation_min_change": "0",
}  # fmt: skip
START_SECONDS = 300
STATEFUL = {
    "use_ema": "true", "gradient_accumulation_steps": 2, "lr_scheduler": "cosine", "lr_warmup_steps": 3,
    "checkpointing_steps": 2, "checkpoints_total_limit": 2, "gradient_checkpointing": "true", "validation_steps": 2,
}  # fmt: skip


def write_pictures(folder: Path) -> Path:
    """Write six pictures with captions in both languages; two have another shape."""
    folder.mkdir(exist_ok=True)
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
    options = SMALL | {
        "instance_data_dir": str(pictures),
        "output_dir": str(output),
        "cache_dir": str(pictures / ".cache"),
    }
    return [f"{key}={value}" for key, value in (options | changes).items() if value is not None]


def train(
    pictures: Path, output: Path, *, environment: Mapping[str, str] | None = None, **changes: object
) -> subprocess.CompletedProcess[str]:
    """Train. With ``environment``, also an empty one, the command is started as a user starts it."""
    given = arguments(pictures, output, **changes)
    if environment is None:
        return run_lithograph("train", *given, cwd=output.parent)
    return run_cold("train", *given, cwd=output.parent, **environment)


def train_in_two(pictures: Path, output: Path, **changes: object) -> subprocess.CompletedProcess[str]:
    command = ["--standalone", "--nproc_per_node", "2", "-m", "lithograph",
               "train", *arguments(pictures, output, **changes, device="cpu")]  # fmt: skip
    return run_module("torch.distributed.run", *command, cwd=output.parent, environment={})


def begin(pictures: Path, output: Path, **changes: object) -> subprocess.Popen[bytes]:
    output.parent.mkdir(parents=True, exist_ok=True)
    with (output.parent / f"{output.name}.log").open("ab") as log:
        return WarmPopen(lithograph("train", *arguments(pictures, output, **changes)), stdout=log, stderr=log)


def wait_for(process: subprocess.Popen[bytes], path: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not path.exists():
        assert process.poll() is None, "the training ended"
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.005)


def checkpoint(output: Path, step: int) -> Path:
    return output / "checkpoints" / f"step-{step:08d}" / "checkpoint.json"


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
