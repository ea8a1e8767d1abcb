"""The memory of a device, and the share of it that a plan may fill. Imports torch only to query a GPU."""

from collections.abc import Iterator
from pathlib import Path

_SHARE = 0.9
"""Share of a device that a plan may fill: the rest goes to fragmentation, libraries and the driver."""

_FREE_SHARE = 0.95
"""Share of the memory that is free now: that of other programs' fragments is known."""


def usable_bytes(available_bytes: int) -> int:
    """Return the bytes that a plan may fill of a device with that much memory."""
    return int(available_bytes * _SHARE)


def device_bytes(device: object) -> int:
    """Return a device's memory: all of a GPU's, or what this process can still allocate on a CPU.

    ``device`` is torch's, or its name.
    """
    name = str(device)
    if name == "cpu":
        return main_memory_bytes()
    import torch

    if name.startswith("mps"):
        return int(torch.mps.recommended_max_memory())
    return int(torch.cuda.get_device_properties(name).total_memory)


def free_bytes(device: object) -> int:
    """Return the bytes of a CUDA device that a plan may fill beside what other programs use."""
    import torch

    free, total = torch.cuda.mem_get_info(str(device))
    return min(usable_bytes(total), int(free * _FREE_SHARE))


def main_memory_bytes(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the memory available to this process: the least of the machine's and of each control group's above it."""
    import psutil

    available: int = psutil.virtual_memory().available
    return max(0, min([available, *_unused_bytes(proc, cgroups)]))


def _unused_bytes(proc: Path, cgroups: Path) -> Iterator[int]:
    """Yield the unused bytes of every control group's limit; page cache that can be dropped does not count as used."""
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


def readable(size: int) -> str:
    """Format a number of bytes as MiB or GiB."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
