"""Checkpoints of a stage (objects with a ``state_dict``, step, seconds spent) and its result, written atomically."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def save_checkpoint(path: Path, state: dict[str, Any], step: int, elapsed_seconds: float) -> None:
    """Write beside ``path`` and rename, so that a reader sees the old checkpoint or the new one."""
    partial = path.with_suffix(".partial")
    torch.save(
        {"step": step, "elapsed": elapsed_seconds, **{name: part.state_dict() for name, part in state.items()}}, partial
    )
    os.replace(partial, path)


def load_checkpoint(path: Path, state: dict[str, Any]) -> tuple[int, float]:
    """Restore ``state`` in place if there is a checkpoint; return its step and seconds spent (0, 0 if none)."""
    if not path.exists():
        return 0, 0.0
    saved = torch.load(path, weights_only=True)
    for name, part in state.items():
        part.load_state_dict(saved[name])
    return saved["step"], saved["elapsed"]


def save_result(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write`` for a file or directory beside ``path``, then rename it: an existing result means a finished stage."""
    partial = path.with_name(f"{path.name}.unfinished")
    if partial.is_dir():
        shutil.rmtree(partial)
    write(partial)
    os.replace(partial, path)
