"""Trainings on a simulated GPU: the same losses as on a CPU, with every option that saves memory."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.simulated_gpu.device import Counting, Counts
from tests.trainer.trainings import SMALL, write_pictures
from trainer.commands.configuration import read_config
from trainer.loop.loop import Loop
from trainer.record.outcome import Outcome
from trainer.record.progress import StepReport
from trainer.run.pipeline import train

pytestmark = pytest.mark.simulated_gpu

TOLERANCE = 0.02
"""Relative difference of losses in bfloat16."""
OFFLOADED = {"enable_group_offload": True, "group_offload_blocks_per_group": 2}
LEAVES = {"group_offload_type": "leaf_level"}
LOKR = {
    "lora_type": "lycoris",
    "lycoris_config": {
        "algo": "lokr",
        "linear_dim": 4,
        "factor": 4,
        "apply_preset": {"target_module": ["FeedForward"]},
    },
}
RECOMPUTED = {"gradient_checkpointing": True, "gradient_checkpointing_interval": 1}
Trained = Callable[..., list[float]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Train for three steps, with a validation and a checkpoint after the second; return the losses."""
    folder = tmp_path_factory.mktemp("trainings")
    write_pictures(folder / "pictures")
    runs = itertools.count()

    def run(device: str, **changes: Any) -> list[float]:
        output = folder / str(next(runs))
        options = SMALL | {
            "instance_data_dir": str(folder / "pictures"), "cache_dir": str(folder / f"cache-{device}"), "device": device,
            "output_dir": str(output), "max_train_steps": 3, "validation_steps": 2, "checkpointing_steps": 2,
            "mixed_precision": "bf16", "lora_rank": 4, "seed": 1,
        }  # fmt: skip
        config = folder / "config.json"
        config.write_text(json.dumps(options | changes))
        assert train(read_config(config, []), show_bar=False) is Outcome.FINISHED
        metrics = Path(str(changes.get("output_dir", output))) / "metrics.jsonl"
        lines = [json.loads(line) for line in metrics.read_text().splitlines()]
        return [line["loss"] for line in lines if "loss" in line]

    known: dict[str, list[float]] = {}

    def run_once(device: str, **changes: Any) -> list[float]:
        key = f"{device} {sorted(changes.items())}"
        if key not in known:
            known[key] = run(device, **changes)
        return known[key]

    return run_once


VARIANTS: dict[str, dict[str, Any]] = {
    "int8-torchao, EMA": {"base_model_precision": "int8-torchao", "use_ema": True},
    "every second block": RECOMPUTED | {"gradient_checkpointing_interval": 2},
    "offloaded, every second block": RECOMPUTED | OFFLOADED | {"gradient_checkpointing_interval": 2},
    "offloaded int8-quanto, DoRA": OFFLOADED | {"base_model_precision": "int8-quanto", "use_dora": True},
    "offloaded leaves": RECOMPUTED | OFFLOADED | LEAVES | {"optimizer": "prodigy", "learning_rate": 1},
    "offloaded leaves, DoRA": OFFLOADED | LEAVES | {"use_dora": True},
    "int4-quanto, 8-bit optimizer": {"base_model_precision": "int4-quanto", "optimizer": "adamw8bit", "lora_rank": 64},
    "offloaded int4-quanto, DoRA": OFFLOADED | RECOMPUTED | {"base_model_precision": "int4-quanto", "use_dora": True},
    "fp8-quanto, schedule-free": {"base_model_precision": "fp8-quanto", "optimizer": "adamw-schedulefree"},
    "fp8-torchao, offloaded leaves": OFFLOADED | LEAVES | {"base_model_precision": "fp8-torchao"},
    "float16": {"mixed_precision": "fp16"},
    "LoKr, offloaded int8-torchao": OFFLOADED | RECOMPUTED | LOKR | {"base_model_precision": "int8-torchao"},
    "LoKr, int4-quanto": LOKR | {"base_model_precision": "int4-quanto"},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_losses_are_those_of_a_cpu(trained: Trained, name: str) -> None:
    """Checkpointing and offloading change no loss, so the CPU's training does not use them."""
    changes = VARIANTS[name]
    plain = {option: value for option, value in changes.items() if option not in RECOMPUTED | OFFLOADED | LEAVES}
    expected = trained("cpu", **plain)
    actual = trained("cuda", **changes)
    assert actual == pytest.approx(expected, rel=TOLERANCE)


def test_a_resumed_training_makes_the_same_steps(trained: Trained, tmp_path: Path) -> None:
    changes = {
        "mixed_precision": "fp16",
        "use_ema": True,
        "optimizer": "adamw8bit",
        "output_dir": str(tmp_path / "run"),
        "validation_disable": True,
    }
    trained("cuda", **changes, max_train_steps=2)
    resumed = trained("cuda", **changes, resume_from_checkpoint="latest")
    assert resumed == trained("cuda", **changes | {"output_dir": str(tmp_path / "whole")})


@pytest.mark.parametrize(
    ("changes", "copies"),
    [({}, 6), ({"use_dora": True, "base_model_precision": "int8-quanto"}, 6), (OFFLOADED | RECOMPUTED, 600)],
    ids=["LoRA", "DoRA", "offloaded"],
)
def test_a_step_waits_once_for_the_device_and_copies_the_batch_alone(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], copies: int
) -> None:
    """The wait is for loss and gradient norm. Offloaded weights are copied to the device, and never back."""
    counts, advance = list[Counts](), Loop.advance

    def counted(loop: Loop) -> StepReport:
        counting = Counting()
        report = advance(loop)
        counts.append(counting.so_far)
        return report

    monkeypatch.setattr(Loop, "advance", counted)
    trained("cuda", **changes, validation_disable=True)
    last = counts[-1]
    assert (last.waits, last.to_host, last.synchronizations) == (1, 1, 0)
    assert last.host_bytes <= 8
    assert last.to_device <= copies
