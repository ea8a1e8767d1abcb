"""Our trainer beside SimpleTuner: same model, pictures, captions, rank, batch, precision and threads, in alternating runs.

``python -m benchmarks.against_simpletuner --python python3.12`` creates an environment for SimpleTuner under ``build/``
(several GB, with a CUDA build of torch, used on the CPU), then takes about a quarter of an hour. Not a part of CI.

Both train with 512 prompt tokens, as LongCat-Image does: SimpleTuner has no other length, and the embedded model's own 32
would favour our trainer (``--own-prompt-length`` measures that).

SimpleTuner 4.10.1 trains on a CPU only with these workarounds: an older transformers, ``.pin_memory()`` removed from its
collation, ``adamw_bf16``. Steps a second are those of the second half of a run; the time of the first step counts from the
command, with warm caches; memory is the largest sum of resident memory over the process tree, and of its largest process.
"""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import click
import psutil

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "examples" / "ink" / "pictures"
MODEL = ROOT / "longcat" / "embedded"
REQUIREMENTS = ("simpletuner==4.10.1", "transformers==5.22.2")
_PROGRESS = re.compile(rb"(\d+)/(\d+) \[")
_QUIET = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", "OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True, kw_only=True)
class Run:
    """The measurements of one run."""

    steps_per_second: float
    first_step_seconds: float
    tree_mib: float
    process_mib: float


@click.command()
@click.option("--python", default="python3.12", show_default=True, help="For SimpleTuner's environment.")
@click.option("--rounds", default=3, show_default=True, help="Runs of each trainer, in turn.")
@click.option("--steps", default=60, show_default=True, help="Steps of a run.")
@click.option("--folder", type=click.Path(path_type=Path), default=Path("build/against_simpletuner"), show_default=True)
@click.option("--own-prompt-length", is_flag=True, help="Train ours with 32 prompt tokens.")
def main(python: str, rounds: int, steps: int, folder: Path, own_prompt_length: bool) -> None:
    """Print medians of both and their ratios, for batches of 1 and 4."""
    folder = folder.absolute()
    model = MODEL if own_prompt_length else long_prompts(folder / "model")
    peer = environment(folder / "venv", python)
    for batch in (1, 4):
        theirs(peer, folder / f"theirs-{batch}", batch, 4)  # caches
        ours(model, folder / f"ours-{batch}", batch, 4)
        runs: dict[str, list[Run]] = {"SimpleTuner": [], "ours": []}
        for _ in range(rounds):
            runs["SimpleTuner"].append(theirs(peer, folder / f"theirs-{batch}", batch, steps))
            runs["ours"].append(ours(model, folder / f"ours-{batch}", batch, steps))
        medians = {
            name: {
                field: statistics.median(getattr(run, field) for run in several) for field in Run.__dataclass_fields__
            }
            for name, several in runs.items()
        }
        ratios = {field: medians["ours"][field] / medians["SimpleTuner"][field] for field in Run.__dataclass_fields__}
        print(json.dumps({"batch": batch, **medians, "ratio": ratios}, indent=1), flush=True)


def environment(folder: Path, python: str) -> Path:
    """Create SimpleTuner's environment; return its ``bin``."""
    binaries = folder / "bin"
    if not (folder / "ready").exists():
        subprocess.run([python, "-m", "venv", folder], check=True)
        subprocess.run([binaries / "pip", "install", "--quiet", *REQUIREMENTS], check=True)
        (collate,) = folder.rglob("simpletuner/helpers/training/collate.py")
        collate.write_text(collate.read_text(encoding="utf-8").replace(".pin_memory()", ""), encoding="utf-8")
        (folder / "ready").touch()
    return binaries


def long_prompts(folder: Path) -> Path:
    """Return the embedded model with LongCat-Image's prompt length."""
    shutil.copytree(MODEL, folder, dirs_exist_ok=True)
    settings = json.loads((folder / "lithograph.json").read_text())
    (folder / "lithograph.json").write_text(json.dumps(settings | {"max_prompt_tokens": 512}))
    return folder


def theirs(binaries: Path, folder: Path, batch: int, steps: int) -> Run:
    """Run SimpleTuner once."""
    config = folder / "config"
    config.mkdir(parents=True, exist_ok=True)
    pictures = folder / "pictures"  # it writes its own files beside them
    shutil.copytree(PICTURES, pictures, dirs_exist_ok=True)
    data = [
        {
            "id": "ink", "type": "local", "instance_data_dir": str(pictures), "caption_strategy": "textfile",
            "resolution": 128, "resolution_type": "pixel_area", "minimum_image_size": 0, "crop": True,
            "crop_aspect": "square", "crop_style": "center", "cache_dir_vae": str(folder / "cache" / "vae"), "repeats": 1000,
        },
        {
            "id": "text", "type": "local", "dataset_type": "text_embeds", "default": True,
            "cache_dir": str(folder / "cache" / "text"),
        },
    ]  # fmt: skip
    (config / "data.json").write_text(json.dumps(data))
    options = {
        "model_family": "longcat_image", "model_type": "lora", "lora_type": "standard",
        "pretrained_model_name_or_path": str(MODEL), "lora_rank": 16, "lora_alpha": 16, "train_batch_size": batch,
        "max_train_steps": steps, "num_train_epochs": 0, "resolution": 128, "resolution_type": "pixel_area",
        "mixed_precision": "bf16", "learning_rate": 1e-4, "lr_scheduler": "constant", "lr_warmup_steps": 0, "seed": 1,
        "base_model_precision": "no_change", "gradient_checkpointing": False, "optimizer": "adamw_bf16",
        "torch_num_threads": 2, "validation_disable": True, "data_backend_config": str(config / "data.json"),
        "output_dir": str(folder / "output"), "report_to": "none", "disable_bucket_pruning": True, "push_to_hub": False,
        "disable_benchmark": True, "aspect_bucket_alignment": 64, "checkpoint_step_interval": 1_000_000,
    }  # fmt: skip
    (config / "config.json").write_text(json.dumps(options))
    shutil.rmtree(folder / "output", ignore_errors=True)
    path = f"{binaries}:{os.environ['PATH']}"
    begin = time.monotonic()
    process = subprocess.Popen(
        [binaries / "simpletuner", "train"], cwd=folder, env={**os.environ, **_QUIET, "PATH": path},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    memory = Memory(process.pid)
    seen: dict[int, float] = {}
    assert process.stdout is not None
    with (folder / "train.log").open("wb") as log:
        while chunk := os.read(process.stdout.fileno(), 65536):
            log.write(chunk)
            for made, total in _PROGRESS.findall(chunk):
                if int(total) == steps and int(made):
                    seen.setdefault(int(made), time.monotonic())
    if process.wait() or steps not in seen:
        raise SystemExit(
            f"SimpleTuner ended with {process.returncode} after {len(seen)} steps: see {folder / 'train.log'}"
        )
    return _run(seen, begin, memory)


def ours(model: Path, folder: Path, batch: int, steps: int) -> Run:
    """Run our trainer once."""
    shutil.rmtree(folder / "output", ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    options = {
        "pretrained_model_name_or_path": model, "instance_data_dir": PICTURES, "resolution": 128, "lora_rank": 16,
        "train_batch_size": batch, "max_train_steps": steps, "mixed_precision": "bf16", "learning_rate": 1e-4, "seed": 1,
        "validation_disable": "true", "output_dir": folder / "output", "cache_dir": folder / "cache",
    }  # fmt: skip
    arguments = [f"{name}={value}" for name, value in options.items()]
    started, begin = time.time(), time.monotonic()
    with (folder / "train.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "lithograph", "train", *arguments], cwd=ROOT, env={**os.environ, **_QUIET}, stdout=log,
            stderr=log,
        )  # fmt: skip
        memory = Memory(process.pid)
        if process.wait():
            raise SystemExit(f"ours ended with {process.returncode}: see {folder / 'train.log'}")
    lines = map(json.loads, (folder / "output" / "metrics.jsonl").read_text().splitlines())
    return _run({line["step"]: begin + line["time"] - started for line in lines}, begin, memory)


class Memory:
    """The memory of a process tree, watched until it ends."""

    def __init__(self, pid: int) -> None:
        self.tree_mib = self.process_mib = 0.0
        self._root = psutil.Process(pid)
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            try:
                sizes = [one.memory_info().rss / 2**20 for one in (self._root, *self._root.children(recursive=True))]
            except psutil.NoSuchProcess:
                if not self._root.is_running():
                    return
                continue
            self.tree_mib, self.process_mib = max(self.tree_mib, sum(sizes)), max(self.process_mib, *sizes)
            time.sleep(0.1)


def _run(seen: dict[int, float], begin: float, memory: Memory) -> Run:
    last, middle = max(seen), min(step for step in seen if step >= max(seen) // 2)
    return Run(
        steps_per_second=(last - middle) / max(seen[last] - seen[middle], 1e-9),
        first_step_seconds=min(seen.values()) - begin,
        tree_mib=memory.tree_mib,
        process_mib=memory.process_mib,
    )


if __name__ == "__main__":
    main()
