"""How much memory a device has, and how much of it a plan may fill. Torch only to ask a GPU."""

from collections.abc import Iterator
from pathlib import Path

_SHARE = 0.9
"""Of a device that a plan may fill: the rest is fragments, libraries and the device's own."""


def usable_bytes(available_bytes: int) -> int:
    """What a plan may fill of a device."""
    return int(available_bytes * _SHARE)


def device_bytes(device: object) -> int:
    """Memory of a device: all of a GPU's, or what a CPU's process can still get. ``device``: torch's, or its name."""
    name = str(device)
    if name == "cpu":
        return main_memory_bytes()
    import torch

    if name.startswith("mps"):
        return int(torch.mps.recommended_max_memory())
    return int(torch.cuda.get_device_properties(name).total_memory)


def main_memory_bytes(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """The least of what is available and of what each control group above this process leaves."""
    import psutil

    available: int = psutil.virtual_memory().available
    return max(0, min([available, *_left(proc, cgroups)]))


def _left(proc: Path, cgroups: Path) -> Iterator[int]:
    """Of every limit; files that can be dropped from the page cache do not count as used."""
    own = proc / "self" / "cgroup"
    for line in own.read_text().splitlines() if own.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = cgroups / "memory" if controllers else cgroups
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        cached = "total_inactive_file" if controllers else "inactive_file"
        folder = root / path.lstrip("/")
        for group in (folder, *folder.parents):
            if not group.is_relative_to(root):
                break
            limit, used = (group / name for name in names)
            if not limit.exists() or not used.exists() or limit.read_text().strip() == "max":
                continue
            yield int(limit.read_text()) - int(used.read_text()) + _number(group / "memory.stat", cached)


def _number(path: Path, key: str) -> int:
    words = (line.split() for line in path.read_text().splitlines()) if path.exists() else ()
    return next((int(pair[1]) for pair in words if pair[0] == key), 0)
