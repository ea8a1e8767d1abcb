"""``lithograph train`` as a process, on the embedded model and the pictures of examples/ink."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.gpu_check.kit import Kit
from benchmarks.gpu_check.running.processes import ROOT

CONFIG = ROOT / "examples" / "ink" / "config.json"


def train_command(kit: Kit, output: Path, options: Mapping[str, object], *, launcher: Sequence[str] = ()) -> list[str]:
    """Return the command of a training; ``launcher``: the module, and its options, that starts it."""
    given = {
        "instance_data_dir": ROOT / "examples" / "ink" / "pictures", "output_dir": output,
        "cache_dir": output.parent / "cache", "device": kit.settings.device, "validation_min_change": 0,
        "validation_num_inference_steps": 2, **options,
    }  # fmt: skip
    start = [sys.executable, *launcher, "-m", "lithograph", "train", "--config", str(CONFIG), "--log-format", "text"]
    return start + [f"{name}={value}" for name, value in given.items()]


def start(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a command whose output goes to a log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as stream:
        return subprocess.Popen(command, cwd=ROOT, stdout=stream, stderr=stream)


def end_of(log: Path) -> str:
    """Return the end of a log."""
    return " / ".join(log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:])[-300:]
